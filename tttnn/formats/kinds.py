"""Which kind a file is: by its first bytes where they say it, else by its name, else by its first line.

Knows how formats begin. Does not read them.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from .content import LeftOutError
from .encoding import marked_encoding

Kind = Literal["text", "lines", "json", "table", "html", "parquet", "tar", "zip"]
"""lines: JSON, one object a line; json: objects one after another or in one array; table: csv and its kin."""

_SUFFIXES: dict[str, Kind] = {
    "jsonl": "lines",
    "ndjson": "lines",
    "jsonlines": "lines",
    "csv": "table",
    "tsv": "table",
    "htm": "html",
    "html": "html",
    "xhtml": "html",
    "md": "text",
    "txt": "text",
}

# What is not read, by its first bytes. A mark that could begin a text counts where NUL follows.
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "PDF"),
    (b"{\\rtf", "RTF"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an old Office (doc, xls, ppt)"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"RIFF", "an image, sound or film (webp, wav, avi)"),
    (b"\x1aE\xdf\xa3", "a film (mkv, webm)"),
    (b"OggS", "sound or a film (ogg)"),
    (b"fLaC", "sound (flac)"),
    (b"ID3", "sound (mp3)"),
    (b"\x7fELF", "a program (ELF)"),
    (b"MZ", "a program (Windows)"),
    (b"\xca\xfe\xba\xbe", "a program (Java, Mach-O)"),
    (b"\xcf\xfa\xed\xfe", "a program (Mach-O)"),
    (b"\0asm", "a program (WebAssembly)"),
    (b"!<arch>\n", "a library (ar)"),
    (b"SQLite format 3\0", "a SQLite database"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x1f\x9d", "compress (.Z)"),
    (b"ARROW1\0\0", "Arrow"),
    (b"ORC", "ORC"),
    (b"Obj\x01", "Avro"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"GGUF", "a model (GGUF)"),
    (b"wOFF", "a font"),
    (b"wOF2", "a font"),
    (b"\0\x01\0\0\0", "a font"),
    (b"OTTO", "a font"),
)
_ALWAYS = (b"%PDF-", b"{\\rtf")
# Written by tttnn itself (csrc/FORMAT.md), or by git in the place of a file: offset, bytes, what it is.
_REMARKABLE = (
    (8, b"TTTNNSTO", "a text store of tttnn: tttnn export writes its documents"),
    (0, b"tttndele", "a file of a datastore of tttnn"),
    (0, b'{"tttnn": ', "results of tttnn"),
    (0, b"version https://git-lfs.github.com/spec/", "a pointer of git LFS in the place of a file: run git lfs pull"),
)
# An object with a name or without, or an array of objects.
_BEGINS_AS_JSON = re.compile(r'\{\s*["}]|\[\s*[{\]]')
_OFFICE = {"docx", "xlsx", "pptx", "odt", "ods", "odp", "epub"}
_OFFICE_MEMBERS = (b"[Content_Types].xml", b"mimetypeapplication/")
_UNPACKED_ELSEWHERE = {"br": "Brotli", "lz4": "lz4", "z": "compress (.Z)", "rar": "a RAR archive", "7z": "a 7z archive"}


def suffix_of(name: str) -> str:
    """Return what follows the last dot of a name, in lower case; an empty text where there is none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot and stem else ""


def refuse(head: bytes) -> None:
    """Raise LeftOutError where a file, compressed or not, is known by its first bytes and not read."""
    for offset, mark, what in _REMARKABLE:
        if head[offset : offset + len(mark)] == mark:
            raise LeftOutError(f"is {what}")
    for mark, what in _REFUSED:
        if head.startswith(mark) and (mark in _ALWAYS or not mark.isalnum() or b"\0" in head):
            raise LeftOutError(f"is {what}, which is not read")
    if head[:3] == b"\0\0\0" and head[4:8] == b"ftyp":
        raise LeftOutError("is a film or an image (mp4, heic), which is not read")


def kind_of(name: str, head: bytes, *, text_field: str, whole: bool) -> Kind:
    """Return which kind a file is.

    Args:
        name: Its name, without the suffix of a compression.
        head: Its beginning, uncompressed: `streams.HEAD_BYTES` of it, or all.
        text_field: The field of JSON that holds the text. A first line that is an object with this field makes any
            file one of rows.
        whole: Whether a ``.json`` file of one object without that field is a text, as a file of settings among sources
            is; otherwise the object is a row, and its reader says what it lacks.

    Raises:
        LeftOutError: It is of a kind that is not read.
    """
    suffix = suffix_of(name)
    refuse(head)
    if head[:4] == b"PAR1":
        return "parquet"
    if head[257:262] == b"ustar" or (suffix == "tar" and b"\0" in head):
        return "tar"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        if suffix in _OFFICE or any(member in head[:200] for member in _OFFICE_MEMBERS):
            raise LeftOutError(f"is {suffix or 'a document of an office program'}, which is not read: save it as text")
        return "zip"
    if suffix in _UNPACKED_ELSEWHERE:
        raise LeftOutError(f"is {_UNPACKED_ELSEWHERE[suffix]}, which is not read")
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    encoding, mark_bytes = marked_encoding(head)
    return _kind_of_text(head[mark_bytes:].decode(encoding, "replace").lstrip(), suffix, text_field, whole)


def _kind_of_text(head: str, suffix: str, text_field: str, whole: bool) -> Kind:
    if suffix == "" and head[:14].lower().startswith(("<!doctype html", "<html")):
        return "html"
    first_line = head.split("\n", 1)[0]
    row, rest = _first_object(first_line)
    if row is not None and text_field in row and not rest.strip():
        return "lines"
    if suffix not in ("", "json") or not _BEGINS_AS_JSON.match(head):
        return "json" if suffix == "json" and not whole else "text"
    if head[0] == "[":
        return "json"
    if row is not None:
        follows = head[len(first_line) :].lstrip()
        return "text" if whole and not follows.startswith("{") else "lines"
    if "\n" not in head:  # one line, longer than the head
        return "text" if whole and f'"{text_field}"' not in head else "lines"
    row, rest = _first_object(head)
    if row is None:
        return "text" if whole and f'"{text_field}"' not in head else "json"
    return "text" if whole and text_field not in row and not rest.lstrip().startswith("{") else "json"


def _first_object(text: str) -> tuple[dict[str, object] | None, str]:
    """Return the JSON object that a text begins with, and what follows; None where there is no whole one."""
    try:
        row, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, ""
    return (row, text[end:]) if isinstance(row, dict) else (None, "")
