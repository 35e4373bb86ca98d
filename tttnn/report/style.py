"""How the report's figures look, and how matplotlib's become SVG for the page and PNG beside it.

Knows colours and formats. Does not know what is drawn.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError
from ..evaluation.catalogue import BASE, CATALOGUE
from ..files import write_file

INK, RULE, PAPER = "#1c1e21", "#d4d7db", "#fefefe"
"""Text, grid and background of a PNG; on the page they follow the reader's light or dark scheme."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a method looks in every figure, on a light and on a dark page.

    The colours are after Okabe and Ito's, which colour-blind readers tell apart, darkened where they are pale on white;
    markers and dashes differ too.
    """

    colour: str
    dark: str
    marker: str
    dashes: str | tuple[int, tuple[int, ...]]


STYLES = (
    Style("#0072b2", "#4aa8e0", "o", "-"),
    Style("#d55e00", "#f08438", "s", "-"),
    Style("#009e73", "#2cc499", "^", "-"),
    Style("#b0568f", "#dd92c0", "D", "-"),
    Style("#c48300", "#eab04a", "v", "-"),
    Style("#2f9bd0", "#84cdf4", "P", (0, (4, 2))),
    Style("#7b5c2e", "#c6a676", "X", (0, (4, 2))),
    Style("#5b51a3", "#a9a1ea", "<", (0, (4, 2))),
    Style("#3f7d20", "#8ec96c", ">", (0, (1, 1))),
    Style("#a3283a", "#ef8391", "p", (0, (1, 1))),
    Style("#0f6f70", "#5cc4c5", "h", (0, (4, 1, 1, 1))),
    Style("#8a3fa0", "#cf93e0", "d", (0, (4, 1, 1, 1))),
    Style("#6b6b00", "#c9c944", "*", (0, (1, 1))),
)
_BASE = Style("#6b7076", "#a2a8b0", "o", "-")


def styles_of(methods: Sequence[str]) -> dict[str, Style]:
    """Give each method its look: that of the catalogue, any other method one that is left; base is grey."""
    looks = {name: entry.style for name, entry in CATALOGUE.items() if entry.style is not None}
    known = {method: STYLES[looks[method]] for method in methods if method in looks}
    left = [style for style in STYLES if style not in known.values()] or list(STYLES)
    others = [method for method in methods if method != BASE.name and method not in looks]
    return {BASE.name: _BASE} | known | dict(zip(others, itertools.cycle(left), strict=False))


def colour_rules(dark: bool) -> str:
    """Return the CSS variables that the figures' colours refer to, for a light or a dark page."""
    pairs = [(_variable(style.colour), style.dark if dark else style.colour) for style in (*STYLES, _BASE)]
    return "".join(f"{name}:{value};" for name, value in pairs)


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield matplotlib's Figure class under this report's settings."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is needed for a report. Install it with: pip install 'tttnn[plot]'"
        ) from error
    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # a group's name may hold a dollar sign
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "figure.facecolor": PAPER,
        "svg.fonttype": "none",
        "svg.hashsalt": "tttnn",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes in the PNG; the page's SVG holds it as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        yield Figure


def svg_of(figure: Any, name: str, title: str) -> str:
    """Return a figure as one inline ``<svg>`` whose colours follow the page.

    Args:
        figure: what one of the functions below drew.
        name: makes the ids inside unlike those of the page's other figures.
        title: said by screen readers.
    """
    buffer = io.StringIO()
    with drawing():
        figure.patch.set_visible(False)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        figure.patch.set_visible(True)
        figure.set_layout_engine("none")  # laid out once: the PNG keeps it
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # In HTML, namespaces are known, and ids are of the whole page.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    for style in (*STYLES, _BASE):
        text = text.replace(style.colour, f"var({_variable(style.colour)})")
    for colour, variable in ((INK, "var(--ink)"), (RULE, "var(--rule)"), (PAPER, "var(--paper)")):
        text = text.replace(colour, variable)
    text = text.replace("'DejaVu Sans'", "var(--face)")
    head, tag, rest = text.partition(">")  # the first tag: its size is the column's
    text = re.sub(r' (width|height)="[^"]*"', "", head) + tag + rest
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(title)}"', 1)


def save_png(figure: Any, path: Path) -> None:
    """Write a figure as a PNG of 150 dots per inch."""
    made = io.BytesIO()
    with drawing():
        figure.savefig(made, format="png", dpi=150, metadata={"Software": None})
    write_file(path, made.getvalue())


def _variable(colour: str) -> str:
    return f"--m{colour[1:]}"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
