"""What every settings class can do: declare fields, check values, read them from text.

Knows types, ranges and texts; does not know a single setting.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, get_args, get_origin, get_type_hints

from .errors import ConfigError


def setting(default: Any, about: str, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Declare a field with its default, the text `--help` shows, and the range it must lie in."""
    return field(default=default, metadata={"help": about, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True)
class Config:
    """What every settings class can do: check itself, copy itself with changes, turn into plain values."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            if get_origin(hints[f.name]) is tuple and isinstance(getattr(self, f.name), list):
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))  # as JSON and TOML hand it over
            self._check(f.name, getattr(self, f.name), hints[f.name], f.metadata)

    @staticmethod
    def _check(name: str, value: Any, hint: Any, limits: Any) -> None:
        kinds = get_args(hint) or (hint,)
        if get_origin(hint) is tuple and not isinstance(value, tuple):
            raise ConfigError(f"{name} must be a tuple, got {value!r}")
        if value is None:
            if type(None) not in kinds:
                raise ConfigError(f"{name} must be given, got None")
            return
        if all(isinstance(kind, str) for kind in kinds):
            if value not in kinds:
                raise ConfigError(f"{name} must be one of {', '.join(kinds)}, got {value!r}")
            return
        if bool in kinds or isinstance(value, bool):
            if bool not in kinds or not isinstance(value, bool):
                raise ConfigError(
                    f"{name} must be {' or '.join(getattr(k, '__name__', str(k)) for k in kinds)}, got {value!r}"
                )
            return
        if str in kinds:
            if not all(isinstance(text, str) for text in (value if isinstance(value, tuple) else (value,))):
                raise ConfigError(f"{name} must hold text, got {value!r}")
            return
        minimum, maximum = limits.get("minimum"), limits.get("maximum")
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                raise ConfigError(f"{name} must be a number, got {value!r}")
            if int in kinds and float not in kinds and not isinstance(number, int):
                raise ConfigError(f"{name} must be a whole number, got {value!r}")
            # Written so that NaN fails too.
            if (minimum is not None and not number >= minimum) or (maximum is not None and not number <= maximum):
                low = "-inf" if minimum is None else f"{minimum:g}"
                high = "inf" if maximum is None else f"{maximum:g}"
                raise ConfigError(f"{name} must be between {low} and {high}, got {value!r}")

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some settings changed; an unknown name is a ConfigError."""
        names = sorted(f.name for f in fields(self))
        for name in changes:
            if name not in names:
                raise ConfigError(f"setting must be one of {', '.join(names)}, got {name!r}")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for reports and manifests."""
        return asdict(self)


def parsed(hint: Any, value: Any) -> Any:
    """Return what a text from outside means as the value of a field of type `hint`; other values stay as they are.

    A number is read as such, ``none`` where the type allows None, ``true`` and ``false`` where it is a bool, and what
    stands between commas where it is a tuple. Whether a word is one of a choice's, the class checks.

    Raises:
        ValueError: the text is no such number or bool.
    """
    kinds = get_args(hint) or (hint,)
    if value is None and "none" in kinds:
        return "none"  # a choice of that name, which others read as None
    if not isinstance(value, str) or all(isinstance(kind, str) for kind in kinds):
        return value
    if type(None) in kinds and value.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if get_origin(hint) is tuple:
        return tuple(parsed(kind, part) for part in value.split(",") if part)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{value!r} is neither true nor false")
        return value.lower() == "true"
    return kind(value) if kind in (int, float) else value
