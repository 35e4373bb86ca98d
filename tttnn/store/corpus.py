"""Corpora as they are found: files and folders of texts and rows -> documents, one after another.

Knows which field of a row is its text and which its source. Does not know stores, nor how a file is read.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import CorpusConfig
from ..formats.compression import split_compression
from ..formats.content import Content, DamagedError, LeftOut, Row, Text
from ..formats.folder import Wanted, files_below, is_datastore, shown
from ..formats.kinds import Kind, suffix_of
from ..formats.reader import Reader
from .document import SOURCE_FIELD, Document, fault_of
from .rejects import Rejected, Rejects

STANDARD_INPUT = "-"

# The format holds 65,534 sources; a corpus with a folder for each document needs none of them.
MOST_FOLDER_SOURCES = 10_000

AnyPath = str | os.PathLike[str]


class Corpus:
    """The documents of files and folders, in the order in which they are named.

    Can be iterated again and gives the same documents, unless a part of it is standard input or a pipe. What is no
    document is listed with place and reason, never dropped in silence.

    Args:
        paths: Files, folders, or ``-`` for standard input.
        config: Which field is the text, which files are read. None: the defaults.
        rejects: A file that receives one JSON object for each line, row or file that is left out.
        on_reject: Called with place and reason of each.
        kind: What every file is taken for; None: each is told by its content and name.
        name_paths: Whether places are told with the paths as they are given; otherwise, where there is only one path,
            by line, or by the path below it.

    Raises:
        FileNotFoundError: A path is not there.
        ValueError: A path is a datastore, or neither a file, a folder nor a pipe.
    """

    def __init__(
        self,
        paths: Sequence[AnyPath],
        config: CorpusConfig | None = None,
        *,
        rejects: AnyPath | None = None,
        on_reject: Callable[[int | str, str], None] | None = None,
        kind: Kind | None = None,
        name_paths: bool = True,
    ) -> None:
        self.paths = [os.fspath(path) for path in paths]
        self.config = config or CorpusConfig()
        self.rejects_file = None if rejects is None else Path(rejects)
        self.on_reject = on_reject
        self.name_paths = name_paths
        self.can_be_read_again = True
        """Whether every iteration gives the documents; otherwise only the first does."""
        self.empty_texts = 0
        """Documents of the last iteration whose text is empty."""
        self.whole_files = 0
        """Documents of the last iteration that are the text of a file."""
        self.rows = 0
        """Documents of the last iteration that are one row or line of a file."""
        self._wanted = Wanted(self.config.include, self.config.exclude)
        self._reader = Reader(self.config, kind, self._wanted)
        self._rejects = Rejects()
        self._sources = _FolderSources(self.config)
        self._was_read = False
        for path in self.paths:
            self._check(path)

    def _check(self, path: str) -> None:
        if path == STANDARD_INPUT:
            self.can_be_read_again = False
            return
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            raise FileNotFoundError(f"{shown(path)}: there is no such file or folder") from None
        if stat.S_ISDIR(mode):
            try:
                names = os.listdir(path)
            except OSError:  # told when it is read
                names = []
            if is_datastore(Path(path), names):
                raise ValueError(f"{shown(path)}: is a datastore. Write its documents to a file with: tttnn export")
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            self.can_be_read_again = False
        elif not stat.S_ISREG(mode):
            raise ValueError(f"{shown(path)}: must be a file, a folder or a pipe")

    @property
    def rejected(self) -> list[Rejected]:
        """What the last iteration left out, with the reason: the first hundred thousand."""
        return self._rejects.first

    @property
    def num_rejected(self) -> int:
        """How many files, lines and rows the last iteration left out."""
        return self._rejects.count

    def remarks(self) -> list[str]:
        """Return what a reader of the last iteration's documents may not expect, a sentence each."""
        remarks = []
        if self.whole_files and self.rows:
            remarks.append(f"{self.rows} documents are rows of files, {self.whole_files} are whole files")
        if self.empty_texts:
            remarks.append(f"{self.empty_texts} documents have an empty text: nothing can find them")
        if self._sources.full:
            remarks.append(
                f"after {MOST_FOLDER_SOURCES} different sources of folders no more were given: what was found in other "
                "folders has no source"
            )
        return remarks

    def __iter__(self) -> Iterator[Document]:
        if self._was_read and not self.can_be_read_again:
            raise ValueError("standard input and pipes can be read once, and were")
        self._was_read = True
        self.empty_texts = self.whole_files = self.rows = 0
        rejects = Rejects(self.rejects_file, self.on_reject)
        self._rejects = rejects
        self._sources = _FolderSources(self.config)
        try:
            for path in self.paths:
                for content, root in self._contents(path):
                    document = self._document(content, root)
                    if isinstance(document, Document):
                        self.empty_texts += not document.text
                        self.whole_files += isinstance(content, Text)
                        self.rows += isinstance(content, Row)
                        yield document
                    else:
                        rejects.add(self._where(path, document), document.reason, document.number, document.line)
        finally:
            rejects.close()

    def _contents(self, path: str) -> Iterator[tuple[Content, str | None]]:
        """Yield what a path holds, with the beginning of its name that says nothing of its source; None: all of it."""
        if os.path.isdir(path):
            ours = [self._rejects.inode] if self._rejects.inode is not None else []
            for entry in files_below(Path(path), self._wanted, ours):
                if isinstance(entry, LeftOut):
                    yield entry, ""
                else:
                    for content in self._reader.found(Path(path, entry), shown(entry)):
                        yield content, ""
            return
        name = _named(path)
        try:
            if path == STANDARD_INPUT:
                contents = self._reader.stream(name, sys.stdin.buffer, whole=False)
            else:
                contents = self._reader.named(Path(path), name)
            for content in contents:
                yield content, None if content.name == name else f"{name}/"
        except DamagedError as error:
            raise ValueError(f"{name if path == STANDARD_INPUT else shown(path)}: {error}") from None

    def _where(self, path: str, left: LeftOut) -> int | str:
        below = path if os.path.isdir(path) else os.path.dirname(path)
        if not self.name_paths and left.number is not None and left.name == _named(path):
            return left.number
        name = os.path.join(shown(below), left.name) if self.name_paths else left.name
        return name if left.number is None else f"{name}:{left.number}"

    def _document(self, content: Content, root: str | None) -> Document | LeftOut:
        """Make a document, or say why the content is none; it gets a source where it has none of its own."""
        if isinstance(content, LeftOut):
            return content
        number, line = None, None
        if isinstance(content, Text):
            document = Document(content.text, {"path": content.name})
        else:
            number, line = content.number, content.line
            try:
                document = _document_of(content, self.config)
            except _NotADocumentError as error:
                return LeftOut(content.name, number, str(error), line)
        if root is not None and document.source is None:
            source = self._sources(content.name.removeprefix(root))
            if source is not None:
                document.meta[SOURCE_FIELD] = source
        fault = fault_of(document)
        return document if fault is None else LeftOut(content.name, number, fault, line)


def _named(path: str) -> str:
    """Return the name of a file that was named."""
    return "standard input" if path == STANDARD_INPUT else shown(os.path.basename(path))


class _FolderSources:
    """Names the source of what is found in folders and archives and has none of its own."""

    def __init__(self, config: CorpusConfig) -> None:
        self._kind = config.folder_source
        self._seen: set[str] = set()
        self.full = False
        """Whether there was one more source than are given."""

    def __call__(self, name: str) -> str | None:
        """Return the source of a file by its path."""
        if self._kind == "folder":
            source = name.partition("/")[0] if "/" in name else ""
        else:
            source = suffix_of(split_compression(name)[0]) if self._kind == "suffix" else ""
        if source not in self._seen and len(self._seen) >= MOST_FOLDER_SOURCES:
            self.full = True
            return None
        self._seen.add(source)
        return source or None


class _NotADocumentError(Exception):
    """A row is no document; the message is the reason."""


def _document_of(row: Row, config: CorpusConfig) -> Document:
    """Make a document of a row: its text, the object in ``meta``, and every other field as metadata."""
    fields = row.fields
    if config.text_field not in fields:
        names = ", ".join(list(fields)[:10]) or "an empty object"
        raise _NotADocumentError(f"has no field {config.text_field!r}, only {names}")
    text = fields.pop(config.text_field)
    if not isinstance(text, str):
        raise _NotADocumentError(f"field {config.text_field!r} must be a string, got {type(text).__name__}")
    meta = fields.pop("meta", None)
    if isinstance(meta, str) and row.line is None:
        meta = _object_in(meta)
    if meta is None:
        meta = {}
    if not isinstance(meta, dict):
        raise _NotADocumentError(f"field 'meta' must be an object, got {type(meta).__name__}")
    for name, value in fields.items():
        if name in meta:
            raise _NotADocumentError(f"field {name!r} stands both beside 'meta' and in it")
        meta[name] = value
    if config.source_field is not None:
        source = meta.get(config.source_field.removeprefix("meta."))
        if not isinstance(source, str | int | float | None):
            raise _NotADocumentError(
                f"field {config.source_field!r} must be a string or a number, as it names a source, "
                f"got {type(source).__name__}"
            )
        meta.pop(SOURCE_FIELD, None)
        if source is not None:
            meta[SOURCE_FIELD] = str(source)
    return Document(text, meta)


def _object_in(text: str) -> dict[str, Any]:
    """Return the JSON object that a column ``meta`` of a table holds; a text that is none, under that name."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else {"meta": text}


def no_documents(documents: object) -> ValueError:
    """Return the error for a corpus that holds no document, with the first reasons why."""
    message = "documents must hold at least one document, got none"
    if isinstance(documents, Corpus) and documents.num_rejected:
        first = "; ".join(
            f"{where if isinstance(where, str) else f'line {where}'}: {reason}"
            for where, reason in documents.rejected[:3]
        )
        more = documents.num_rejected - 3
        message += f". Left out: {first}" + (f"; and {more} more" if more > 0 else "")
        if any("has no field" in reason or "has no column" in reason for _, reason in documents.rejected[:3]):
            message += ". Name the field that holds the text with --text-field"
    return ValueError(message + ".")


def iter_jsonl(
    path: AnyPath,
    *,
    text_field: str = "text",
    rejects: AnyPath | None = None,
    on_reject: Callable[[int | str, str], None] | None = None,
) -> Corpus:
    """Read documents from a file of JSON lines, one object a line, whatever its name; it may be compressed.

    The object in ``meta``, and every other field beside it, becomes the document's metadata. Lines that hold no
    document are listed in ``rejected`` of what is returned, once it has been iterated; blank lines are no documents.
    The file is streamed; one that ends inside a compressed frame is a ValueError.

    Args:
        path: The file: plain, or gzip, bzip2, xz or zstd of any number of frames.
        text_field: The field that holds the text.
        rejects: A file that receives one JSON object (where, reason, line, content) for each rejected line. None: no
            file.
        on_reject: Called with line number and reason for each rejected line.

    Returns:
        An object that yields `Document` each time it is iterated.
    """
    _must_be_a_file(path)
    config = CorpusConfig(text_field=text_field)
    return Corpus([path], config, rejects=rejects, on_reject=on_reject, kind="lines", name_paths=False)


def iter_parquet(path: AnyPath, *, text_field: str = "text") -> Corpus:
    """Read documents from the rows of a Parquet file, column by column as `iter_jsonl` does field by field.

    Needs pyarrow. Values that JSON does not have are written as text: times as ISO 8601, decimals by their digits,
    bytes as UTF-8 or else in base64, numbers that are not finite by name. Rows without a text are listed in
    ``rejected`` by their number, counted from 1. A file without the column is a ValueError.
    """
    _must_be_a_file(path)
    return Corpus([path], CorpusConfig(text_field=text_field), kind="parquet", name_paths=False)


def iter_folder(path: AnyPath, *, patterns: Sequence[str] = ("*",)) -> Corpus:
    """Read every text file under a folder as one document, in the order of their relative paths.

    The relative path is in the metadata as ``path``, and the first folder of it as the
    source; files at the top have none. Files that are no text are listed in ``rejected``.

    Args:
        path: The folder; hidden files and folders in it are left out.
        patterns: Shell patterns, of which a file's name or relative path must match one.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{shown(path)}: there is no such folder")
    include = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    return Corpus([path], CorpusConfig(include=include), kind="text", name_paths=False)


def iter_corpus(path: AnyPath, config: CorpusConfig | None = None) -> Corpus:
    """Read a corpus of any kind: a file, or a folder of files of any kinds.

    What a file is, its first bytes say, and its name where they do not: JSON lines, JSON in one array or one object
    after another, csv and tsv, Parquet, HTML (without its tags), tar and zip of such files, or text; each of them plain
    or compressed by gzip, bzip2, xz or zstd. Text is UTF-8, or what a byte order mark says; the mark is taken off, line
    ends stay as they are. In a folder a ``.json`` file of one object without a text is a text, as among sources.

    Args:
        path: A file, a folder, or ``-`` for standard input.
        config: Which field is the text, which files are read. None: the defaults.

    Returns:
        An object that yields `Document` each time it is iterated, and lists in ``rejected`` what is no document.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: While it is iterated: a file that was named is damaged, or lacks the column of the text. One that
            was found in a folder is listed in ``rejected``.
        MissingExtraError: While it is iterated: a package that reads such a file is not installed.
    """
    return Corpus([path], config, name_paths=False)


def iter_corpora(
    paths: Iterable[AnyPath], config: CorpusConfig | None = None, *, rejects: AnyPath | None = None
) -> Corpus:
    """Read several corpora, each as `iter_corpus` does, one after another.

    Args:
        paths: As of `iter_corpus`.
        config: As of `iter_corpus`.
        rejects: A file that receives one JSON object (where, reason; line and content of a line) for each line, row or
            file that is left out.
    """
    paths = list(paths)
    return Corpus(paths, config, rejects=rejects, name_paths=len(paths) > 1)


def _must_be_a_file(path: AnyPath) -> None:
    if not os.path.exists(path) or os.path.isdir(path):
        raise FileNotFoundError(f"{shown(path)}: there is no such file")
