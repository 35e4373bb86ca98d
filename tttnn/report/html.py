"""Safe HTML and CSV out of values that may hold any text, and how numbers are written in them.

Knows characters and formats. Does not know what the values mean.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.bootstrap import Interval

DASH, _MINUS = "\u2013", "\u2212"
"""Written where there is no value; and before a negative one."""

_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, tab and newline excepted
    "\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069"  # which turn the direction of the text around them
    "\ud800-\udfff\ufffe\uffff]"  # halves of surrogate pairs, which UTF-8 cannot hold, and what is no character
)


def plain(text: str) -> str:
    """Replace what no page can show, and what would reorder the page around it, by U+FFFD."""
    return _UNSHOWN.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return a text as a name: plain, on one line, "(none)" where nothing is left."""
    return " ".join(plain(text).split()) or "(none)"


def escape(text: str) -> str:
    """Make a text safe in an element and in a quoted attribute."""
    return html.escape(plain(text))


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


def decimals(value: float | None, places: int = 3) -> str:
    """Write a value to a number of places; a dash where there is none."""
    return DASH if value is None or math.isnan(value) else f"{value:.{places}f}".replace("-", _MINUS)


def signed(value: float, places: int = 3) -> str:
    """Write a difference with its sign; zero has none."""
    written = f"{value:+.{places}f}"
    return written[1:] if not written.strip("+-0.") else written.replace("-", _MINUS)


def significant(value: float | None) -> str:
    """Write a value to three significant digits, without an exponent up to ten million; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent >= 7:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    rounded = round(value, 2 - exponent)
    return f"{rounded:,.{max(0, min(4, 2 - exponent))}f}"


def whole(value: float | None) -> str:
    """Write a count, thousands apart; a dash where there is none."""
    return DASH if value is None else f"{value:,.0f}"


def ends(interval: Interval, documents: int, *, sign: bool = False) -> str:
    """Write the ends of a 95 % interval, where there is one."""
    if not interval.certain:
        return "one document" if documents < 2 else "no interval"
    write = signed if sign else decimals
    return f"[{write(interval.low)},\u00a0{write(interval.high)}]"


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a table. `tone`: "better", "worse" or "" tints it; `detail` is written small after the text."""

    text: str
    detail: str = ""
    tone: str = ""
    strong: bool = False

    def html(self, *, head: bool) -> str:
        """Return the element."""
        inner = escape(self.text)
        if self.detail:
            inner += f" <small>{escape(self.detail)}</small>"
        if self.strong:
            inner = f"<strong>{inner}</strong>"
        tone = f' class="{self.tone}"' if self.tone else ""
        return f'<th scope="row"{tone}>{inner}</th>' if head else f"<td{tone}>{inner}</td>"


def table(head: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, caption: str, names: int = 1) -> str:
    """Return a ``<table>``: its first `names` columns are names on the left, the others numbers on the right."""
    lines = [f"<caption>{escape(caption)}</caption>", "<thead><tr>"]
    lines += [
        f'<th scope="col"{" class=name" if i < names else ""}>{escape(title)}</th>' for i, title in enumerate(head)
    ]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        lines.append("<tr>" + "".join(cell.html(head=i < names) for i, cell in enumerate(cells)) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</tbody></table></div>'


def settings_list(values: Mapping[str, Any]) -> str:
    """Return nested settings as a ``<dl>``, in the order of their names."""
    items = []
    for name in sorted(values):
        value = values[name]
        if isinstance(value, Mapping):
            shown = settings_list(value) if value else "none"
        elif isinstance(value, list | tuple) and not any(isinstance(one, Mapping | list) for one in value):
            shown = escape(", ".join(map(str, value)) or "none")
        else:
            shown = escape("none" if value is None else str(value))
        items.append(f"<dt>{escape(str(name))}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; numbers at full precision, an empty field for None.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _field(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, str):
        text = plain(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
    return "" if isinstance(value, float) and math.isnan(value) else value
