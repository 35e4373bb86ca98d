"""What every settings class can do: declare fields, read values from outside, check them.

One reader and one checker for flags, TOML files, JSON and the arguments of other programs. Knows types, ranges and
texts; does not know a single setting.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError

_NONE = type(None)


def setting(
    default: Any,
    about: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    group: str = "",
    per_call: bool = False,
    trains: bool = True,
    flag: str = "",
) -> Any:
    """Declare a field.

    Args:
        default: its value where none is given.
        about: what the help shows of it.
        minimum: smallest value it may have, itself or each of its entries.
        maximum: largest value, likewise.
        group: under which heading help shows it, "common" before all others; empty: that of its class.
        per_call: whether it may differ from one call to the next of what was made with the settings.
        trains: whether it changes what is trained of given texts.
        flag: name of its flag where the field's own would say too little; empty: the field's name.
    """
    limits = {"minimum": minimum, "maximum": maximum}
    return field(
        default=default,
        metadata={"help": about, "group": group, "per_call": per_call, "trains": trains, "flag": flag, **limits},
    )


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return what a type is made of: ``int | None`` is int and None; a Literal is one kind."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _entry(kind: Any) -> Any:
    """Return the type of a tuple's entries."""
    return get_args(kind)[0]


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def read(hint: Any, value: Any, name: str = "value") -> Any:
    """Return what a value from outside (a flag, TOML, JSON) means for a field of type `hint`.

    A text is read as a number, as ``none`` where the type allows None, as ``true`` or ``false``, as one of a choice's
    words, or as entries with commas between. What is no text stays as it is, but for a None where "none" is a choice:
    other programs read that word so. Whether the value may stand in the field, `check` says.

    Raises:
        ConfigError: the text is none of these; the message begins with `name`.
    """
    kinds = _kinds(hint)
    if value is None and _NONE not in kinds and any("none" in get_args(kind) for kind in kinds):
        return "none"
    if not isinstance(value, str):
        return value
    # Lists and texts come last: any text is one.
    for kind in sorted(kinds, key=lambda kind: (kind is str, _is_tuple(kind), kind is not _NONE)):
        try:
            return _from_text(kind, value)
        except ValueError:
            continue
    raise ConfigError(f"{name} must be {describe(hint)}, got {value!r}")


def _from_text(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    word = text.strip()
    if kind is _NONE and word.lower() == "none":
        return None
    if kind is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if kind in (int, float):
        return kind(word)
    if get_origin(kind) is Literal and word in get_args(kind):
        return word
    if _is_tuple(kind):
        return tuple(_from_text(_entry(kind), part.strip()) for part in word.split(",") if part.strip())
    raise ValueError


def text_of(value: Any) -> str:
    """Return the text that `read` understands as a value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(text_of, value)) if isinstance(value, tuple) else str(value)


def check(
    hint: Any, value: Any, name: str = "value", *, minimum: float | None = None, maximum: float | None = None
) -> Any:
    """Return a value as a field of type `hint` holds it: a list as a tuple, a number as a plain int or float.

    Args:
        hint: the field's type.
        value: what `read` returned, or what a program gave.
        name: the field's, with which a message begins.
        minimum: smallest value it may have, itself or each of its entries.
        maximum: largest value, likewise.

    Raises:
        ConfigError: the value is of another type, none of a choice's words, or out of range.
    """
    for kind in _kinds(hint):
        try:
            checked = _as_kind(kind, value)
        except (TypeError, OverflowError):
            continue
        for number in checked if isinstance(checked, tuple) else (checked,):
            if isinstance(number, float) and math.isinf(number):
                raise ConfigError(f"{name} must be finite, got {value!r}")
            # Written so that NaN fails too.
            if isinstance(number, int | float) and not (
                (minimum is None or number >= minimum) and (maximum is None or number <= maximum)
            ):
                low, high = _bound(minimum, "-inf"), _bound(maximum, "inf")
                raise ConfigError(f"{name} must be between {low} and {high}, got {value!r}")
        return checked
    raise ConfigError(f"{name} must be {describe(hint)}, got {value!r}")


def _as_kind(kind: Any, value: Any) -> Any:
    """Return a value as one kind holds it; a TypeError where it is of another."""
    if _is_tuple(kind) and isinstance(value, tuple | list):
        return tuple(_as_kind(_entry(kind), entry) for entry in value)
    if kind is _NONE and value is None:
        return None
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if kind in (int, float) and not isinstance(value, bool) and isinstance(value, {int: Integral, float: Real}[kind]):
        return kind(value)
    raise TypeError


def _bound(limit: float | None, absent: str) -> str:
    return absent if limit is None else str(limit) if isinstance(limit, int) else f"{limit:g}"


def describe(hint: Any) -> str:
    """Say in words what a field of a type may hold: a whole number or none."""
    words = []
    for kind in _kinds(hint):
        if get_origin(kind) is Literal:
            words.append(f"one of {', '.join(get_args(kind))}")
        elif _is_tuple(kind):
            lists = {int: "a list of whole numbers like 0,5,20", float: "a list of numbers like 0.1,1"}
            words.append((lists | {str: "a list of texts"})[_entry(kind)])
        else:
            named = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", _NONE: "none"}
            words.append(named[kind])
    return " or ".join(words)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a sentence with the name that was likely meant, to follow a message; empty where none is like it."""
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return f". Did you mean {close[0]}?" if close else ""


_types: dict[type[Any], dict[str, Any]] = {}


def _hints(cls: type[Any]) -> dict[str, Any]:
    """Return the types of a settings class's fields, read once: that takes longer than checking all values."""
    if cls not in _types:
        _types[cls] = get_type_hints(cls)
    return _types[cls]


@dataclass(frozen=True)
class Config:
    """What every settings class can do: check itself, copy itself with changes, turn into plain values."""

    GROUP: ClassVar[str] = ""
    """The heading under which help shows these settings."""

    GONE: ClassVar[Mapping[str, str]] = {}
    """Settings that earlier versions had and that changed no answer: what holds now in place of each."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in fields(self):
            checked = check(
                hints[f.name],
                getattr(self, f.name),
                f.name,
                minimum=f.metadata.get("minimum"),
                maximum=f.metadata.get("maximum"),
            )
            object.__setattr__(self, f.name, checked)

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some settings changed; an unknown name is a ConfigError."""
        names = sorted(f.name for f in fields(self))
        for name in changes:
            if name in self.GONE:
                raise ConfigError(f"{name} is no longer a setting: {self.GONE[name]}. Leave it out.")
            if name not in names:
                meant = nearest(name, names)
                listed = f"{type(self).__name__}'s" if meant else ", ".join(names)
                raise ConfigError(f"setting must be one of {listed}, got {name!r}{meant}")
        return replace(self, **changes)

    def with_read(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with some settings changed by values from outside: texts, or what JSON and TOML hold.

        Raises:
            ConfigError: a name is unknown, or a value cannot be read or may not stand there.
        """
        hints = _hints(type(self))
        return self.with_(**{name: read(hints.get(name, str), value, name) for name, value in values.items()})

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that a report of this version or an earlier one holds; those that are gone are left out.

        Raises:
            ConfigError: as for `with_read`.
        """
        return cls().with_read({name: value for name, value in values.items() if name not in cls.GONE})

    def differing(self, other: Self, *, per_call: bool | None = None, trains: bool | None = None) -> list[str]:
        """Return the names of settings that differ between two of a class, in the order of the fields.

        Args:
            other: the settings to compare with.
            per_call: only those that may (True) or may not (False) differ from call to call; None: both.
            trains: only those that do (True) or do not (False) change what is trained; None: both.
        """
        wanted = {name: value for name, value in (("per_call", per_call), ("trains", trains)) if value is not None}
        return [
            f.name
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
            and all(f.metadata.get(mark) is value for mark, value in wanted.items())
        ]

    def trained_with(self) -> dict[str, Any]:
        """Return those settings, as plain values, that change what is trained."""
        marked = {f.name for f in fields(self) if f.metadata.get("trains")}
        return {name: value for name, value in self.to_dict().items() if name in marked}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for reports and manifests."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
