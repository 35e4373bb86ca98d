"""Files that appear whole or not at all, strict JSON, and manifests that carry their own digest.

Knows nothing of their content.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import IndexCorruptError

_log = logging.getLogger("tttnn")

PARTIAL = ".partial"
"""What the name of a file ends with until it is whole."""

_PIECE = 1 << 22
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
_HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_FULL = "Free some space and run the same command again."
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EMFILE: "Raise the limit of open files with: ulimit -n",
    errno.EFBIG: "Raise the limit of a file's size with: ulimit -f",
}
_REMEDY = "Restore the file or rebuild the datastore."
_SURROGATE = re.compile("[\ud800-\udfff]")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the file system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # a folder that may be written need not be readable
    try:
        _sync(handle, path, "folders")
    finally:
        os.close(handle)


def sync(file: IO[Any]) -> None:
    """Make what was written to an open file durable, where the file system can.

    Raises:
        OSError: A disk that is full or fails; with the path and the remedy.
    """
    with explained(Path(file.name)):
        file.flush()
        _sync(file.fileno(), file.name, "files")


def _sync(handle: int, path: str | Path, kind: str) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        _log.info("%s: its file system does not sync %s; a power cut may lose what was written last", path, kind)


def lock_file(file: IO[Any], *, wait: bool = False) -> bool:
    """Hold an open file against other writers until it is closed; say whether the file system has locks.

    Args:
        file: The open file.
        wait: Wait for another holder.

    Raises:
        BlockingIOError: Another process or thread holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
        warn_unlocked(file.name)
        return False
    return True


def warn_unlocked(path: str | Path) -> None:
    """Say that other writers are not held off."""
    _log.warning("%s: its file system has no locks; see that nothing else writes there meanwhile", path)


def require_regular(path: Path) -> None:
    """Refuse to replace what is no file of ours.

    Raises:
        FileExistsError: There is a link, a folder, a pipe, a socket or a device of this name.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
        kind = kinds.get(stat.S_IFMT(mode), "a socket or a device")
        raise FileExistsError(f"{path}: must be a regular file or a new name, got {kind}. Choose another name.")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Give an OSError of a full disk or of too many open files, which names no file, a path and a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None or remedy in str(error):
            raise
        at = error.filename if error.filename is not None else path
        raise type(error)(error.errno, f"{os.fsdecode(at)}: {os.strerror(error.errno or 0)}. {remedy}") from error


def finish_file(partial: Path, path: Path) -> None:
    """Sync `partial`, rename it to `path`, and sync the directory: after a crash there is the old file or the new.

    Raises:
        FileExistsError: There is a link, a folder, a pipe, a socket or a device of this name.
    """
    require_regular(path)
    with open(partial, "rb") as file:
        sync(file)
    os.replace(partial, path)
    sync_directory(path.parent)


def new_beside(path: Path, create: Callable[[Path], object] = lambda path: open(path, "xb").close()) -> Path:
    """Create a file beside `path`, to be written and then given to `finish_file`: PATH.partial.

    What has that name already may be anyone's: then it is PATH.1.partial, PATH.2.partial and so on.

    Args:
        path: What it is to become.
        create: Creates something of a name, or raises FileExistsError; an empty file unless said otherwise.
    """
    for number in itertools.count():
        partial = path.with_name(f"{path.name}{f'.{number}' if number else ''}{PARTIAL}")
        try:
            create(partial)
        except FileExistsError:
            continue
        return partial
    raise AssertionError("numbers do not end")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path` when the block ends, and goes away when the block fails.

    Raises:
        FileExistsError: There is a link, a folder, a pipe, a socket or a device of this name.
    """
    require_regular(path)
    with explained(path):
        partial = new_beside(path)
    try:
        with explained(partial), open(partial, "wb") as file:
            yield file
        finish_file(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        FileExistsError: There is a link, a folder, a pipe, a socket or a device of this name.
    """
    with replacing(path) as file:
        file.write(content)


def check_target(path: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Raise where a file that is to be written would be lost work or someone's loss.

    Args:
        path: Where it goes.
        force: Whether a regular file that is there may be replaced.
        inputs: What is read meanwhile: none of it is ever replaced.

    Raises:
        FileExistsError: There is something else, or an input, or a file and no `force`.
        FileNotFoundError: There is no folder for it.
    """
    if not os.path.lexists(path):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: its folder must be there, and is not. Make it with: mkdir -p")
        return
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: must be a regular file or nothing, and is neither")
    if any(given.exists() and path.exists() and given.samefile(path) for given in inputs):
        raise FileExistsError(f"{path}: must not be a file that is read meanwhile")
    if not force:
        raise FileExistsError(f"{path}: is there already. --force (force=True) replaces it")


def check_folder(path: Path) -> None:
    """Raise where a folder that files are to be written into is something else.

    Raises:
        FileExistsError: There is a file, a pipe, a socket or a device of this name, or a link that leads nowhere.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise FileExistsError(f"{path}: must be a folder or a new name, and is neither. Choose another name.")


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and the sha256 of its content."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return {"size": size, "sha256": digest.hexdigest()}


def check_file(path: Path, expected: dict[str, Any], *, content: Any = None, error: type[Exception]) -> None:
    """Raise `error` unless a file has the size and the sha256 it is expected to have.

    Args:
        path: The file.
        expected: What `describe_file` returned when it was written.
        content: A buffer with the file's content, where it is mapped already; None reads the file.
        error: The class to raise; a missing file is a FileNotFoundError.
    """
    check_size(path, expected, error=error)
    digest = describe_file(path)["sha256"] if content is None else hashlib.sha256(content).hexdigest()
    if digest != expected["sha256"]:
        raise error(f"{path}: its sha256 is {digest[:16]}, expected {expected['sha256'][:16]}. {_REMEDY}")


def check_size(path: Path, expected: dict[str, Any], *, error: type[Exception]) -> None:
    """Raise `error` unless a file has the size it is expected to have; a missing file is a FileNotFoundError."""
    size = path.stat().st_size
    if size != expected["size"]:
        raise error(f"{path}: holds {size} bytes, expected {expected['size']}. {_REMEDY}")


def digest_of(value: Any) -> str:
    """Return a hex digest of plain values (canonical JSON, blake2b, 16 bytes)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def strict_json(value: Any, *, ascii_only: bool = False, default: Callable[[Any], Any] | None = None) -> str:
    """Return one line of JSON that every parser reads and UTF-8 can hold.

    What JSON does not have is written as text: numbers that are not finite as "NaN", "Infinity" and "-Infinity", a lone
    surrogate as U+FFFD, what lies more than a hundred levels deep as "(nested too deeply)".

    Args:
        value: Plain values.
        ascii_only: Escape every other character.
        default: Called with a value of another type; returns a plain one.
    """
    try:
        text = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, default=default)
        text.encode()
        if ascii_only and "\\ud" in text:  # one half of a pair, or a whole one
            value = json.loads(text)
            json.dumps(value, ensure_ascii=False).encode()
        return text
    except (ValueError, RecursionError):
        return json.dumps(mended(value, default=default), ensure_ascii=ascii_only, allow_nan=False)


def mended(value: Any, *, levels: int = 100, default: Callable[[Any], Any] | None = None) -> Any:
    """Return a value with text in the place of what strict JSON does not have, as `strict_json` writes it.

    Args:
        value: Plain values.
        levels: Objects and lists inside each other that are kept.
        default: As of `strict_json`.
    """
    if isinstance(value, str):
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float):
        return value
    if levels == 0:
        return "(nested too deeply)"
    if isinstance(value, dict):
        return {
            key if isinstance(key, bool | int) else mended(key): mended(inner, levels=levels - 1, default=default)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [mended(inner, levels=levels - 1, default=default) for inner in value]
    return value if default is None else mended(default(value), levels=levels - 1, default=default)


def write_manifest(path: Path, fields: dict[str, Any]) -> None:
    """Write plain values as JSON together with their digest."""
    write_file(path, _manifest_bytes({**fields, "digest": digest_of(fields)}))


def _manifest_bytes(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def read_manifest(path: Path, *, format_version: int) -> dict[str, Any]:
    """Read a manifest, without its digest.

    Raises:
        FileNotFoundError: There is none.
        IndexCorruptError: It is not what was written, or its format is a newer one.
    """
    try:
        content = path.read_bytes()
        fields = json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise IndexCorruptError(f"{path}: is not JSON ({problem}). {_REMEDY}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise IndexCorruptError(f"{path}: has no format number. {_REMEDY}")
    if fields["format"] > format_version:
        raise IndexCorruptError(
            f"{path}: format must be at most {format_version}, got {fields['format']}. Install a newer tttnn."
        )
    if content != _manifest_bytes(fields):
        raise IndexCorruptError(f"{path}: is not written as tttnn writes it. {_REMEDY}")
    expected = fields.pop("digest", None)
    digest = digest_of(fields)
    if digest != expected:
        raise IndexCorruptError(f"{path}: its digest is {digest[:16]}, expected {str(expected)[:16]}. {_REMEDY}")
    return fields
