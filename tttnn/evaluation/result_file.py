"""A file of results: one JSON line per document and method, written document by document, continued and read back."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ..config import AdaptConfig, EvalConfig, ScoreConfig, SelectionConfig
from ..errors import ConfigError
from ..files import check_target, lock_file, sync
from .records import Line, Measured, Seconds, Skipped, Texts
from .results import EvalResult

FORMAT = "results 2"


def read_results(path: str | os.PathLike[str]) -> EvalResult:
    """Read a file of results, with ``<path>.seconds`` and ``<path>.texts`` where they lie beside it.

    A last line that was cut off, and a document of which some methods are missing, are left out: an interrupted run
    can be read as far as it went.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no file of results, or one of another format; a line is damaged.
    """
    path = Path(path)
    data = path.read_bytes()
    settings, first = _header(path, data)
    measured_by_position, _ = _measured(path, data[first:], settings)
    result = EvalResult(settings, texts={} if Path(f"{path}.texts").is_file() else None)
    for _, measured in sorted(measured_by_position.items()):
        result.add(measured)
    return result


def _header(path: Path, data: bytes) -> tuple[dict[str, Any], int]:
    first, newline, _ = data.partition(b"\n")
    try:
        header = json.loads(first)
        kind, settings = header["tttnn"], header["settings"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{path}: is not a file of results: it has no header line of tttnn") from None
    if kind != FORMAT or not newline or not isinstance(settings, dict):
        raise ConfigError(f"{path}: must be of the format {FORMAT!r}, got {kind!r}. Measure again.")
    return settings, len(first) + 1


def _measured(path: Path, data: bytes, settings: dict[str, Any]) -> tuple[dict[int, Measured], int]:
    """Read whole documents after the header, and what lies beside them; return how many bytes they take, too."""
    methods = list(settings["methods"])
    measured_of: dict[int, Measured] = {}
    block: list[Line] = []
    kept = start = 0
    for number, row in enumerate(data.split(b"\n")[:-1], 2):
        start += len(row) + 1
        try:
            value = json.loads(row)
            if "skipped" in value:
                skipped = Skipped(value["document"], value["digest"], value["group"], str(value["skipped"]))
                measured_of[skipped.document] = Measured(skipped, [], [], [])
                kept = start
                continue
            line = Line.from_dict(value)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number} is no result: {error}. Choose another --out.") from error
        block.append(line)
        if line.method != methods[len(block) - 1] or line.document != block[0].document:
            raise ConfigError(
                f"{path}: line {number} must be document {block[0].document} under {methods[len(block) - 1]}, got "
                f"document {line.document} under {line.method}. Choose another --out."
            )
        if len(block) == len(methods):
            measured_of[line.document] = Measured(None, block, [], [])
            block, kept = [], start
    try:
        for spent in _sidecar(Path(f"{path}.seconds")):
            if spent["document"] in measured_of:
                points = {point["k"]: point["seconds"] for point in spent["points"]}
                seconds = Seconds(spent["document"], spent["method"], spent["seconds"], points)
                measured_of[seconds.document].seconds.append(seconds)
        for texts in _sidecar(Path(f"{path}.texts")):
            if texts["document"] in measured_of:
                texts["neighbors"] = [(neighbor["id"], neighbor["excerpt"]) for neighbor in texts["neighbors"]]
                measured_of[texts["document"]].texts.append(Texts(**texts))
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: what stands beside it in .seconds or .texts is no part of results ({error!r}). Move it away."
        ) from error
    return measured_of, kept


def _sidecar(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, if it is there; a line cut off by an interruption is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


_BESIDE = b'{"document": '
"""What every line beside results begins with."""


def _check_beside(path: Path) -> None:
    """Refuse a file of the name of one that stands beside results, unless an evaluation wrote every line of it.

    Raises:
        ConfigError: it holds something else.
        FileExistsError: it is no regular file.
    """
    check_target(path, force=True)
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line[: len(_BESIDE)] != _BESIDE and not _BESIDE.startswith(line.rstrip(b"\n")):
                raise ConfigError(
                    f"{path}: line {number} is none that an evaluation writes beside its results. Move the file away, "
                    "or choose another --out."
                )


def _continued(path: Path, *, fresh: bool) -> IO[str]:
    """Open a file of JSON lines to append; a last line that was cut off is ended, so that the next stands alone."""
    cut = not fresh and path.is_file() and not path.read_bytes().endswith(b"\n")
    file = open(path, "w" if fresh else "a", encoding="utf-8")  # noqa: SIM115
    if cut:
        file.write("\n")
    return file


class ResultFile:
    """A file of results while it is written: locked, and continued where an interrupted run left it."""

    def __init__(self, path: Path, settings: dict[str, Any], *, texts: bool = False) -> None:
        """Create or continue a file.

        Raises:
            ConfigError: the file holds other settings or something else, or another process is writing it; what stands
                beside it under the names of its seconds and texts is nothing that an evaluation wrote.
            FileExistsError: one of the three is no regular file.
        """
        self._held: dict[int, Measured] = {}
        header = json.dumps({"tttnn": FORMAT, "settings": settings})
        path.parent.mkdir(parents=True, exist_ok=True)
        check_target(path, force=True)
        beside = {name: Path(f"{path}.{name}") for name in ("seconds", "texts")}
        for place in beside.values():
            _check_beside(place)
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115
        try:
            lock_file(self._file)
            kept = self._read(header, settings) if path.stat().st_size else 0
        except BlockingIOError as error:
            self._file.close()
            raise ConfigError(
                f"{path}: another process is writing it. Wait for it, or choose another --out."
            ) from error
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(kept)
        if not kept:  # what an earlier file, gone now, left is no part of this one
            beside["texts"].unlink(missing_ok=True)
        self._seconds = _continued(beside["seconds"], fresh=not kept)
        self._texts = _continued(beside["texts"], fresh=not kept) if texts else None
        if not kept:
            self._file.write(header.encode() + b"\n")
            self._file.flush()

    def _read(self, header: str, settings: dict[str, Any]) -> int:
        """Take over whole documents of an earlier run; return the number of bytes to keep."""
        data = self._path.read_bytes()
        first, newline, rest = data.partition(b"\n")
        if not newline and header.encode().startswith(first):
            return 0  # cut off in its first line: nothing was measured
        difference = None if first.decode("utf-8", "replace") == header else _difference(first, settings)
        if difference is not None:
            raise ConfigError(f"{self._path}: holds results of {difference}. Choose another --out.")
        self._held, kept = _measured(self._path, rest, settings)
        return len(first) + 1 + kept

    def held(self, position: int, digest: str) -> Measured | None:
        """Return what an earlier run measured of a document; None where it did not.

        Raises:
            ConfigError: it was another document.
        """
        measured = self._held.get(position)
        if measured is not None and measured.digest != digest:
            raise ConfigError(
                f"document {position} must be the one the results file was begun with (digest {measured.digest}), "
                f"got {digest}. Choose another --out."
            )
        return measured

    def append(self, measured: Measured) -> None:
        """Write one document; what goes beside it first, so that no document lacks its seconds."""
        at = time.time()
        for spent in measured.seconds:
            points = [{"k": k, "seconds": round(value, 4)} for k, value in sorted(spent.points.items())]
            stages = {name: round(value, 4) for name, value in spent.seconds.items()}
            row = {"document": spent.document, "method": spent.method, "seconds": stages, "points": points, "at": at}
            self._seconds.write(json.dumps(row) + "\n")
        self._seconds.flush()
        if self._texts is not None:
            for texts in measured.texts:
                excerpts = [{"id": number, "excerpt": excerpt} for number, excerpt in texts.neighbors]
                self._texts.write(json.dumps(asdict(texts) | {"neighbors": excerpts}) + "\n")
            self._texts.flush()
        if measured.skipped is not None:
            left = measured.skipped
            rows = [{"document": left.document, "digest": left.digest, "group": left.group, "skipped": left.reason}]
        else:
            rows = [line.to_dict() for line in measured.lines]
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        sync(self._file)

    def close(self) -> None:
        """Close the files and give up the lock."""
        self._file.close()
        self._seconds.close()
        if self._texts is not None:
            self._texts.close()


_DEFAULTS = {
    name: value
    for config in (EvalConfig(), ScoreConfig(), SelectionConfig(), AdaptConfig())
    for name, value in json.loads(json.dumps(config.to_dict())).items()
}


_DESCRIPTIVE = ("description",)
"""What names a thing in full and decides nothing."""


def _is_default(key: str, value: Any) -> bool:
    return key in _DESCRIPTIVE or (key in _DEFAULTS and value == _DEFAULTS[key])


def _difference(first: bytes, settings: dict[str, Any]) -> str | None:
    """Return what a file holds instead of results of these settings; None where there is no difference.

    A setting that is newer than the file, and has its default now, is none: the file was made with what it does. Nor is
    one that is gone: it changed no answer.
    """
    try:
        header = json.loads(first)
        recorded = header["settings"]
        if header["tttnn"] != FORMAT:
            return f"the format {header['tttnn']!r}, not {FORMAT!r}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "something else than tttnn"
    names = _changed("", recorded, json.loads(json.dumps(settings)))
    return "other settings: " + ", ".join(names) if names else None


def _changed(prefix: str, recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = []
    for key in sorted({*recorded, *now}):
        old, new = recorded.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _changed(f"{prefix}{key}.", old, new)
        elif key not in now and key in AdaptConfig.GONE:
            continue
        elif old != new and not (key not in recorded and _is_default(key, new)):
            names.append(f"{prefix}{key} = {old} (now {new})")
    return names
