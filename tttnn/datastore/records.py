"""Frozen dataclasses read from the plain values of a JSON file; what is missing, unknown or of another type is named.

Knows types. Does not know what any field means.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import IndexCorruptError

Record = TypeVar("Record")
_NAMES = {tuple: "list", dict: "object"}  # as JSON has them
_REMEDY = "Restore the file or rebuild the datastore."


def read_record(cls: type[Record], value: Any, where: str) -> Record:
    """Return the dataclass that a JSON object stands for.

    Args:
        cls: A dataclass; its fields are numbers, texts, bools, dicts, tuples, None and such dataclasses.
        value: What `json.loads` gave.
        where: Names the place in messages: ``path: field``.

    Raises:
        IndexCorruptError: A field is missing, unknown or of another type, or a whole number is less than 0.
    """
    if not isinstance(value, dict):
        raise IndexCorruptError(f"{where}: must be an object, got {_short(value)}. {_REMEDY}")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            raise IndexCorruptError(f"{where}: must not have a field {name!r}. {_REMEDY}")
    values = {}
    for name, declared in known.items():
        if name in value:
            values[name] = _read(hints[name], value[name], f"{where}.{name}")
        elif declared.default is MISSING and declared.default_factory is MISSING:
            raise IndexCorruptError(f"{where}: must have a field {name!r}. {_REMEDY}")
    return cls(**values)


def _read(hint: Any, value: Any, where: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if value is None and NoneType in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    if is_dataclass(kind):
        return read_record(kind, value, where)  # type: ignore[arg-type]
    base, inner = get_origin(kind) or kind, get_args(kind)
    if base is tuple and isinstance(value, list):
        return tuple(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if base is dict and isinstance(value, dict):
        return {
            key: item if inner[1] is Any else _read(inner[1], item, f"{where}.{key}") for key, item in value.items()
        }
    if base is float and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if base in (int, str, bool) and type(value) is base:
        if base is int and value < 0:
            raise IndexCorruptError(f"{where}: must be 0 or more, got {value}. {_REMEDY}")
        return value
    raise IndexCorruptError(f"{where}: must be {_NAMES.get(base, base.__name__)}, got {_short(value)}. {_REMEDY}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
