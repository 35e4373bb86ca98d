"""Corpora as they are found: JSON lines, folders of text, single files -> documents, one after another.

Every reader can be iterated again and gives the same documents. What cannot be read as a document is listed in
``rejected``, never dropped in silence. Knows nothing of stores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ..errors import MissingExtraError
from .compression import open_bytes
from .document import Document


class Rejected(NamedTuple):
    """What a reader could not take as a document."""

    where: int | str
    """Line number, counted from 1, or the relative path of a file."""
    reason: str


class JsonlCorpus:
    """The documents of one ``.jsonl`` or ``.jsonl.zst`` file; see `iter_jsonl`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        text_field: str = "text",
        rejects: str | os.PathLike[str] | None = None,
        on_reject: Callable[[int, str], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.text_field = text_field
        self.rejects = None if rejects is None else Path(rejects)
        self.on_reject = on_reject
        self.rejected: list[Rejected] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file")

    def __iter__(self) -> Iterator[Document]:
        rejected: list[Rejected] = []
        self.rejected = rejected
        reject_file = None if self.rejects is None else self.rejects.open("w", encoding="utf-8")
        try:
            with open_bytes(self.path) as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    try:
                        document = self._parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                    except _NotADocumentError as error:
                        rejected.append(Rejected(number, str(error)))
                        if reject_file is not None:
                            content = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
                            row = {"line": number, "reason": str(error), "content": content}
                            reject_file.write(json.dumps(row) + "\n")
                        if self.on_reject is not None:
                            self.on_reject(number, str(error))
                        continue
                    yield document
        finally:
            if reject_file is not None:
                reject_file.close()

    def _parse(self, line: bytes) -> Document:
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise _NotADocumentError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
        except json.JSONDecodeError as error:
            raise _NotADocumentError(f"is not JSON: {error.msg} at column {error.colno}") from None
        except RecursionError:
            raise _NotADocumentError("is nested too deeply") from None
        except ValueError as error:  # an integer of more digits than Python converts
            raise _NotADocumentError(f"is not JSON that can be read: {error}") from None
        if not isinstance(row, dict):
            raise _NotADocumentError(f"must be a JSON object, got {type(row).__name__}")
        return _document_of(row, self.text_field)


class FolderCorpus:
    """The text files of one folder; see `iter_folder`."""

    def __init__(self, path: str | os.PathLike[str], *, patterns: Sequence[str] = ("*",)) -> None:
        self.path = Path(path)
        self.patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        self.rejected: list[Rejected] = []
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: there is no such folder")

    def files(self) -> list[str]:
        """Return the relative paths of the files that match, sorted; hidden files and folders are left out."""
        found = []
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                relative = (Path(folder) / name).relative_to(self.path).as_posix()
                if not name.startswith(".") and any(fnmatch(relative, p) or fnmatch(name, p) for p in self.patterns):
                    found.append(relative)
        return sorted(found)

    def __iter__(self) -> Iterator[Document]:
        rejected: list[Rejected] = []
        self.rejected = rejected
        for relative in self.files():
            try:
                text = _read_text(self.path / relative)
            except UnicodeDecodeError as error:
                rejected.append(Rejected(relative, f"is not UTF-8: {error.reason} at byte {error.start}"))
                continue
            yield Document(text, {"path": relative})


class ParquetCorpus:
    """The rows of one Parquet file; see `iter_parquet`."""

    def __init__(self, path: str | os.PathLike[str], *, text_field: str = "text") -> None:
        self.path = Path(path)
        self.text_field = text_field
        self.rejected: list[Rejected] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file")

    def __iter__(self) -> Iterator[Document]:
        try:
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise MissingExtraError("reading Parquet needs pyarrow: pip install pyarrow") from None
        rejected: list[Rejected] = []
        self.rejected = rejected
        with parquet.ParquetFile(self.path) as file:
            if self.text_field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise ValueError(f"{self.path}: has no column {self.text_field!r}, only {names}")
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        yield _document_of(row, self.text_field)
                    except _NotADocumentError as error:
                        rejected.append(Rejected(number, str(error)))


class FileCorpus:
    """One text file as one document."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.rejected: list[Rejected] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file")

    def __iter__(self) -> Iterator[Document]:
        self.rejected = []
        try:
            text = _read_text(self.path)
        except UnicodeDecodeError as error:
            self.rejected.append(Rejected(self.path.name, f"is not UTF-8: {error.reason} at byte {error.start}"))
            return
        yield Document(text, {"path": self.path.name})


class JoinedCorpus:
    """Several corpora, one after another."""

    def __init__(self, parts: Iterable[Corpus]) -> None:
        self.parts: list[JsonlCorpus | ParquetCorpus | FolderCorpus | FileCorpus] = []
        for part in parts:
            self.parts.extend(part.parts if isinstance(part, JoinedCorpus) else [part])

    @property
    def rejected(self) -> list[Rejected]:
        """What the parts rejected, as ``name:line`` or ``name:path``."""
        return [Rejected(f"{part.path.name}:{where}", reason) for part in self.parts for where, reason in part.rejected]

    def __iter__(self) -> Iterator[Document]:
        for part in self.parts:
            yield from part


Corpus: TypeAlias = JsonlCorpus | ParquetCorpus | FolderCorpus | FileCorpus | JoinedCorpus


def iter_jsonl(
    path: str | os.PathLike[str],
    *,
    text_field: str = "text",
    rejects: str | os.PathLike[str] | None = None,
    on_reject: Callable[[int, str], None] | None = None,
) -> JsonlCorpus:
    """Read documents from a ``.jsonl`` or ``.jsonl.zst`` file, one JSON object a line.

    The object in ``meta``, and every other field beside it, becomes the document's metadata. Lines that hold no
    document are listed in ``rejected`` of what is returned, once it has been iterated; blank lines are no documents.
    The file is streamed; one that ends inside a zstd frame is a ValueError.

    Args:
        path: The file. A name that ends in ``.zst`` is decompressed; it may hold several frames.
        text_field: The field that holds the text.
        rejects: A file that receives one JSON object (line, reason, content) for each rejected line. None: no file.
        on_reject: Called with line number and reason for each rejected line.

    Returns:
        An object that yields `Document` each time it is iterated.
    """
    return JsonlCorpus(path, text_field=text_field, rejects=rejects, on_reject=on_reject)


def iter_parquet(path: str | os.PathLike[str], *, text_field: str = "text") -> ParquetCorpus:
    """Read documents from the rows of a Parquet file, column by column as `iter_jsonl` does field by field.

    Needs pyarrow. Rows without a text are listed in ``rejected`` by their number, counted from 1.
    """
    return ParquetCorpus(path, text_field=text_field)


def iter_folder(path: str | os.PathLike[str], *, patterns: Sequence[str] = ("*",)) -> FolderCorpus:
    """Read every text file under a folder as one document, in the order of their relative paths.

    The relative path is in the metadata as ``path``. Files that are not UTF-8 are listed in ``rejected``.

    Args:
        path: The folder; hidden files and folders in it are left out.
        patterns: Shell patterns, of which a file's name or relative path must match one.
    """
    return FolderCorpus(path, patterns=patterns)


def iter_corpora(paths: Sequence[str | os.PathLike[str]]) -> Corpus:
    """Read several corpora, each as `iter_corpus` does, one after another."""
    parts = [iter_corpus(path) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedCorpus(parts)


def iter_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Read a corpus of any kind, told by its name.

    ``.jsonl``, ``.jsonl.zst``, ``.parquet``, a folder of JSON lines, a folder of texts, or one text file.
    """
    path = Path(path)
    if path.is_dir():
        corpus = FolderCorpus(path)
        files = corpus.files()
        jsonl = [name for name in files if name.endswith((".jsonl", ".jsonl.zst"))]
        if not jsonl:
            return corpus
        if len(jsonl) < len(files):
            raise ValueError(
                f"{path}: holds JSON lines ({jsonl[0]}) beside other files ({sorted(set(files) - set(jsonl))[0]}). "
                "Give the files one by one."
            )
        return JoinedCorpus(JsonlCorpus(path / name) for name in jsonl)
    if path.name.endswith((".jsonl", ".jsonl.zst")):
        return JsonlCorpus(path)
    if path.suffix == ".parquet":
        return ParquetCorpus(path)
    return FileCorpus(path)


def _document_of(row: dict[str, Any], text_field: str) -> Document:
    """Make a document of a row: its text, the object in ``meta``, and every other field as metadata."""
    if text_field not in row:
        raise _NotADocumentError(f"has no field {text_field!r}")
    text = row.pop(text_field)
    if not isinstance(text, str):
        raise _NotADocumentError(f"field {text_field!r} must be a string, got {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _NotADocumentError(f"field {text_field!r} has a lone surrogate at {error.start}") from None
    meta = row.pop("meta", None)
    if meta is None:
        meta = {}
    if not isinstance(meta, dict):
        raise _NotADocumentError(f"field 'meta' must be an object, got {type(meta).__name__}")
    for name, value in row.items():
        if name in meta:
            raise _NotADocumentError(f"field {name!r} stands both beside 'meta' and in it")
        meta[name] = value
    return Document(text, meta)


class _NotADocumentError(Exception):
    """A line or file is no document; the message is the reason."""


def _read_text(path: Path) -> str:
    # Not read_text(): its newline translation would lose "\r".
    return path.read_bytes().decode("utf-8")
