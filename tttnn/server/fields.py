"""The fields of a request, taken out one by one; what is left over is refused by name.

Knows JSON values and settings classes. Does not know which request has which fields.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar

from ..dispatch.refusals import Refused, bad, named, without_value
from ..errors import ConfigError
from ..settings import Config

_Settings = TypeVar("_Settings", bound=Config)


def parsed(body: bytes) -> Any:
    """Return what a body says.

    Raises:
        Refused: it is not JSON in UTF-8, or holds NaN, an infinity, or half a surrogate pair.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        # A lone surrogate is no text: no tokenizer takes it.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise bad("body must not be nested that deep", code="invalid_json") from None
    except (UnicodeError, ValueError):
        raise bad("body must be JSON in UTF-8, its numbers finite and its texts whole", code="invalid_json") from None
    return value


def _no_number(name: str) -> float:
    raise ValueError(name)


class Fields:
    """An object of a request. A field that is null counts as not given."""

    def __init__(self, value: Any, where: str = "") -> None:
        """Take an object; `where` is its own name in the request, with a dot behind it."""
        self._where = where
        if not isinstance(value, dict):
            raise bad(f"{where.rstrip('.') or 'body'} must be a JSON object", param=where.rstrip(".") or None)
        self._values = {name: given for name, given in value.items() if given is not None}

    def name(self, field: str) -> str:
        """Return a field's name as seen from the whole request."""
        return self._where + field

    def take(self, field: str, default: Any = None) -> Any:
        """Take a field's value out, whatever it is."""
        return self._values.pop(field, default)

    def rest(self) -> dict[str, Any]:
        """Return what was not taken yet."""
        return self._values

    def text(self, field: str, default: str | None = None) -> str | None:
        """Take a text out."""
        value = self.take(field, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(field, "must be a text")
        return value

    def needed_text(self, field: str) -> str:
        """Take a text out that must be there and hold something."""
        value = self.text(field)
        if value is None or not value.strip():
            raise self.wrong(field, "must be a text that is not empty", code="missing_field" if value is None else None)
        return value

    def flag(self, field: str) -> bool:
        """Take true or false out; false where it is not given."""
        value = self.take(field, False)
        if not isinstance(value, bool):
            raise self.wrong(field, "must be true or false")
        return value

    def texts(self, field: str, most: int) -> list[str]:
        """Take a list of texts out, or one text; empty where it is not given."""
        value = self.take(field, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.wrong(field, "must be a text or a list of texts")
        if len(value) > most:
            raise self.wrong(field, f"must hold at most {most} texts, got {len(value)}")
        return value

    def settings(self, cls: type[_Settings]) -> _Settings:
        """Take out all fields that a settings class has, and return it."""
        given = {f.name: self.take(f.name) for f in dataclasses.fields(cls) if f.name in self._values}
        # JSON has one kind of number: 2 is as good as 2.0, where a settings class wants the one or the other.
        given = {
            n: int(v) if isinstance(v, float) and v.is_integer() and abs(v) < 2**53 else v for n, v in given.items()
        }
        try:
            return cls(**given)
        except ConfigError as error:
            rule = without_value(str(error))
            field = rule.split(" ", 1)[0]
            raise bad(self._where + rule, param=self.name(field)) from None

    def only(self, field: str, *allowed: Any, otherwise: str) -> None:
        """Take a field out that may hold nothing but what changes nothing.

        Raises:
            Refused: it holds something else.
        """
        value = self.take(field)
        if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
            raise self.wrong(field, otherwise, code="unsupported")

    def end(self) -> None:
        """Refuse what was not taken."""
        for field in self._values:
            raise bad(f"{named(self.name(field))} is not supported", param=_param(self.name(field)), code="unsupported")

    def wrong(self, field: str, rule: str, *, code: str | None = None) -> Refused:
        """Return the refusal of a field."""
        return bad(f"{self.name(field)} {rule}", param=self.name(field), code=code or "invalid_value")


def _param(name: str) -> str | None:
    return name if named(name) == name else None
