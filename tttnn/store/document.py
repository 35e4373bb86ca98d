"""A document: one text with its metadata, what it may hold, and the digest that names a text.

Knows texts, metadata and the limits of the store's format. Does not know files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

SOURCE_FIELD = "pile_set_name"
"""The metadata field that names a document's source, as in the Pile."""

DEEPEST = 64
"""Levels of objects and lists in metadata; parsers of JSON elsewhere give up at a hundred or so."""

# csrc/FORMAT.md; csrc/core/store_format.h.
_MOST_TEXT_BYTES = 1 << 30
_MOST_META_BYTES = 16 << 20
_MOST_SOURCE_BYTES = 256 << 10

_EXCERPT = 60  # characters of a text in a repr
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, repr=False)
class Document:
    """One text with its metadata.

    Example:
        >>> Document("def f(): ...", {"pile_set_name": "Github"}).source
        'Github'
    """

    text: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """The part of the corpus that the document came from; None where its metadata do not say."""
        source = self.meta.get(SOURCE_FIELD)
        return source if isinstance(source, str) and source else None

    def __repr__(self) -> str:
        meta = repr(self.meta)
        held = meta if len(meta) <= 2 * _EXCERPT else f"{meta[:_EXCERPT]}... ({len(self.meta):,} fields)"
        return f"Document(text={excerpt(self.text)}, meta={held})"


def excerpt(text: str) -> str:
    """Return the repr of a text, or of its beginning and its length."""
    if len(text) <= _EXCERPT:
        return repr(text)
    return f"{text[:_EXCERPT]!r}... ({len(text):,} characters)"


def text_digest(text: str) -> str:
    """Return 32 hex digits that identify a text: BLAKE2b, 16 bytes, of its UTF-8.

    Lone surrogates, which UTF-8 does not have, are taken as their three bytes would be: every text has a digest.
    """
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def packed_meta(meta: dict[str, Any] | None) -> bytes:
    """Return metadata as the store keeps them: JSON in ASCII that every parser reads; none as no bytes.

    Raises:
        TypeError: They hold a value that JSON does not have.
        ValueError: A number is not finite, a text has a lone surrogate, they are nested more than `DEEPEST` deep, or
            they are larger than the format allows. The message has the place of the value and the reason.
    """
    if not meta:
        return b""
    if any(isinstance(value, dict | list | tuple) for value in meta.values()):
        _check_depth(meta)
    try:
        packed = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(_fault_in(meta, "") or str(error)) from None
    # A surrogate is escaped like any character; pairs of them are those of characters beyond U+FFFF.
    if b"\\ud" in packed and (fault := _fault_in(meta, "")) is not None:
        raise ValueError(fault)
    if len(packed) > _MOST_META_BYTES:
        raise ValueError(f"must have at most {_MOST_META_BYTES} bytes of metadata, got {len(packed)}")
    source = meta.get(SOURCE_FIELD)
    if isinstance(source, str) and len(source.encode()) > _MOST_SOURCE_BYTES:
        raise ValueError(
            f"field {SOURCE_FIELD!r} must have at most {_MOST_SOURCE_BYTES} bytes, got {len(source.encode())}"
        )
    return packed


def fault_of(document: Document) -> str | None:
    """Say why a store cannot keep a document; None where it can."""
    fault = text_fault(document.text)
    if fault is not None:
        return f"its text: {fault}"
    if _plain(document.meta):
        return None
    try:
        packed_meta(document.meta)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _plain(meta: dict[str, Any]) -> bool:
    """Say whether metadata are so plain that nothing can be wrong with them: this costs a tenth of packing them."""
    size = 0
    for name, value in meta.items():
        size += len(name)
        if isinstance(value, str):
            size += len(value)
            if not value.isascii():
                return False
        elif not (value is None or isinstance(value, int)) or (value is not None and not -(2**63) <= value < 2**63):
            return False
        if not name.isascii():
            return False
    return size < _MOST_SOURCE_BYTES


def text_fault(text: str) -> str | None:
    """Say why UTF-8 or the store cannot hold a text; None where they can."""
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            return f"character {error.start} is a lone surrogate, U+{ord(text[error.start]):04X}"
    return f"must have at most {_MOST_TEXT_BYTES} bytes, got {size}" if size > _MOST_TEXT_BYTES else None


def _check_depth(meta: dict[str, Any]) -> None:
    """Refuse metadata that are nested too deeply, level by level: what is too deep for a parser is for recursion."""
    level: list[Any] = [meta]
    for _ in range(DEEPEST):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list | tuple)
        ]
        if not level:
            return
    raise ValueError(f"metadata must be nested at most {DEEPEST} deep")


def _fault_in(value: Any, key_path: str) -> str | None:
    """Say what in a value strict JSON cannot hold, and where; None where nothing is found."""
    if isinstance(value, str):
        surrogate = _SURROGATE.search(value)
        return None if surrogate is None else f"field {key_path!r} has a lone surrogate, U+{ord(surrogate[0]):04X}"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"field {key_path!r} must be finite, got {value}"
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, float) and not math.isfinite(key):
                return f"a field of {key_path or 'the metadata'!r} must have a finite name, got {key}"
            if isinstance(key, str) and (surrogate := _SURROGATE.search(key)) is not None:
                return f"the name of a field has a lone surrogate, U+{ord(surrogate[0]):04X}"
            fault = _fault_in(inner, f"{key_path}.{key}" if key_path else str(key))
            if fault is not None:
                return fault
    if isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            fault = _fault_in(inner, f"{key_path}[{position}]")
            if fault is not None:
                return fault
    return None
