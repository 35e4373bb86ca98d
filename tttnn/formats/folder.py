"""The files below a folder, in the order of their paths: which are read, and why the others are not.

Knows names, links and kinds of files. Does not open one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .content import LeftOut

_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
_MANIFESTS = ("manifest.json", "build.json")
_MOST_MANIFEST_BYTES = 64 << 20


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """Return a path as text that can be kept and printed: what is not UTF-8 or moves the cursor becomes ``\\xe9``."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@dataclass(frozen=True)
class Wanted:
    """Which files of a folder or an archive are read, by shell patterns.

    A pattern is compared with a file's path, its name, and the paths and names of the folders above it. Files and
    folders whose names begin with a dot are never read.
    """

    include: Sequence[str] = ()
    """Patterns of which a file must match one; all files where there are none."""
    exclude: Sequence[str] = ()
    """Patterns of which a file must match none."""

    def __call__(self, path: str) -> bool:
        """Say whether a file is read; `path` is relative, with slashes."""
        parts = path.split("/")
        if any(part.startswith(".") and part not in (".", "..") for part in parts):
            return False
        return (not self.include or _matches(parts, self.include)) and not _matches(parts, self.exclude)

    def enters(self, path: str) -> bool:
        """Say whether files in a folder may be wanted."""
        parts = path.split("/")
        return not parts[-1].startswith(".") and not _matches(parts, self.exclude)


def _matches(parts: list[str], patterns: Sequence[str]) -> bool:
    names = [*parts, *("/".join(parts[: end + 1]) for end in range(1, len(parts)))]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def kind_of_file(mode: int) -> str | None:
    """Name what a file is by its mode; None for a regular one."""
    kinds = (
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISDIR, "a folder"),
    )
    if stat.S_ISREG(mode):
        return None
    return next((name for matches, name in kinds if matches(mode)), "of an unknown type")


def files_below(root: Path, wanted: Wanted, ours: Collection[tuple[int, int]] = ()) -> Iterator[str | LeftOut]:
    """Yield the relative paths of the regular files below a folder that are wanted, sorted, and what is left out.

    Links to files are followed, links to folders are not.

    Args:
        root: The folder.
        wanted: Which files to read.
        ours: Devices and inodes of files that are passed over: what the caller writes.
    """
    folders = [""]
    while folders:
        entry = folders.pop()
        if entry and not entry.endswith("/"):
            yield from _file(root, entry, ours)
            continue
        # Whole paths are sorted as texts, so a folder stands where its name with a slash does.
        try:
            names = sorted(
                (entry_below.name + "/" if entry_below.is_dir(follow_symlinks=False) else entry_below.name)
                for entry_below in os.scandir(root / entry)
            )
        except OSError as error:
            yield LeftOut(shown(entry.rstrip("/") or "."), None, _reason(error))
            continue
        if entry and is_datastore(root / entry, names):
            yield LeftOut(shown(entry.rstrip("/")), None, "is a datastore of tttnn: tttnn export writes its documents")
            continue
        for name in reversed(names):
            path = shown(entry + name)
            if wanted.enters(path.rstrip("/")) if name.endswith("/") else wanted(path):
                folders.append(entry + name)


def _file(root: Path, path: str, ours: Collection[tuple[int, int]]) -> Iterator[str | LeftOut]:
    try:
        status = os.stat(root / path)
    except OSError as error:
        yield LeftOut(shown(path), None, _reason(error, link=os.path.islink(root / path)))
        return
    kind = kind_of_file(status.st_mode)
    if kind == "a folder":
        yield LeftOut(shown(path), None, "is a link to a folder, which is not followed: name that folder, too")
    elif kind is not None:
        yield LeftOut(shown(path), None, f"is {kind}, not a regular file")
    elif (status.st_dev, status.st_ino) not in ours:
        yield path


def _reason(error: OSError, *, link: bool = False) -> str:
    if error.errno == errno.ENOENT:
        return "is a link to a file that is not there" if link else "is gone"
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself"
    return f"cannot be read: {error.strerror}"


def is_datastore(folder: Path, names: Collection[str]) -> bool:
    """Say whether a folder, in which these names stand, is a datastore, or the beginning of one."""
    for name in _MANIFESTS:
        if name in names:
            try:
                if (folder / name).stat().st_size <= _MOST_MANIFEST_BYTES:
                    fields = json.loads((folder / name).read_bytes())
                    if isinstance(fields, dict) and isinstance(fields.get("format"), int) and "digest" in fields:
                        return True
            except (OSError, ValueError, RecursionError):
                continue
    return False
