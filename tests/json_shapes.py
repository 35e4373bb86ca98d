"""Shapes of JSON values as docs/json.md writes them, and whether a value has one.

A shape is JSON itself: an object with each name there is (`name?`: it may be missing; `*`: any other name), a list with
the shape of its items, or words: text, number, count, boolean, null, any, `@name` of another shape, several with "or".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Shapes = dict[str, Any]


def read_shapes(page: Path) -> Shapes:
    """Return the shapes of a page by the name in their heading: the first block of JSON after each."""
    parts = re.split(r"^#+ `([^`]+)`.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = zip(parts[1::2], parts[2::2], strict=True)
    found = {name: re.search(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for name, text in named}
    return {name: json.loads(block.group(1)) for name, block in found.items() if block is not None}


def differences(value: Any, shape: Any, shapes: Shapes, at: str = "") -> list[str]:
    """Return in words where a value is not of a shape; nothing where it is."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{at}: is no list"]
        return [one for i, item in enumerate(value) for one in differences(item, shape[0], shapes, f"{at}[{i}]")]
    if isinstance(shape, dict):
        return _of_object(value, shape, shapes, at)
    tried = [_of_word(value, word, shapes, at) for word in shape.split(" or ")]
    return min(tried, key=len)


def _of_object(value: Any, shape: Shapes, shapes: Shapes, at: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{at}: is no object"]
    known = {name.removesuffix("?"): inner for name, inner in shape.items() if name != "*"}
    found = [f"{at}: has no {name}" for name in shape if name != "*" and not name.endswith("?") and name not in value]
    for name, item in value.items():
        if name in known or "*" in shape:
            found += differences(item, known.get(name, shape.get("*")), shapes, f"{at}.{name}")
        else:
            found.append(f"{at}: has {name}, which the page does not name")
    return found


def _of_word(value: Any, word: str, shapes: Shapes, at: str) -> list[str]:
    if word.startswith("@"):
        return differences(value, shapes[word[1:]], shapes, at)
    kinds: dict[str, bool] = {
        "any": True,
        "null": value is None,
        "text": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "count": isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    }
    return [] if kinds[word] else [f"{at}: is no {word}: {value!r}"[:200]]
