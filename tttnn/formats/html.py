"""The text of an HTML page: tags, scripts and styles taken out, a line for each block.

Knows selectolax, which is loaded on first use. Does not know which part of a page is worth reading.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from ..errors import MissingExtraError
from .content import LeftOutError
from .encoding import decoded, marked_encoding

_SILENT = {"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "head"}
_INLINE = (
    " a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q rp rt ruby s samp small span "
    "strike strong sub sup td th time tt u var wbr "
)
_DECLARED = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_DECLARED_WITHIN = 4096  # the standard says 1024


def html_text(data: bytes) -> str:
    """Return the text of a page. White space is one space, except in ``pre``; blocks stand on lines of their own.

    Args:
        data: The page, in UTF-8, in what its byte order mark says, or else in the encoding that it declares.

    Raises:
        LeftOutError: It is in no such encoding.
        MissingExtraError: selectolax is not installed.
    """
    try:
        parser = import_module("selectolax.lexbor").LexborHTMLParser
    except ImportError:
        raise MissingExtraError(
            "taking the tags out of HTML needs selectolax. Install it with: pip install selectolax"
        ) from None
    page = parser(_page_of(data))
    title = page.css_first("title")
    lines = _Lines()
    if title is not None:
        lines.write(title.text(), keep=False)
        lines.end_line()
    _walk(page.root, lines)
    return lines.text()


def _page_of(data: bytes) -> str:
    try:
        return decoded(data)
    except LeftOutError:
        declared = _DECLARED.search(data[:_DECLARED_WITHIN])
        if declared is None or marked_encoding(data)[1]:
            raise
        encoding = declared[1].decode("ascii", "replace")
        try:
            return data.decode(encoding)
        except (LookupError, UnicodeDecodeError):
            raise LeftOutError(f"is neither UTF-8 nor {encoding}, which it declares") from None


class _Lines:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []

    def write(self, text: str, *, keep: bool) -> None:
        if keep:
            *whole, last = text.split("\n")
            for line in whole:
                self._lines.append("".join([*self._line, line]).rstrip())
                self._line = []
            self._line.append(last)
            return
        words = " ".join(text.split())
        before = " " if text[:1].isspace() else ""
        after = " " if words and text[-1:].isspace() else ""
        self._line.append(before + words + after)

    def end_line(self, *, keep: bool = False) -> None:
        line = "".join(self._line).rstrip() if keep else re.sub(" {2,}", " ", "".join(self._line)).strip()
        if line:
            self._lines.append(line)
        self._line = []

    def text(self) -> str:
        self.end_line()
        return "\n".join(self._lines).strip("\n")


def _is_block(tag: str) -> bool:
    return not tag.startswith("-") and f" {tag} " not in _INLINE


def _walk(root: Any, lines: _Lines) -> None:
    """Write the text below a node, without recursion: pages nest as deep as they like."""
    node = root
    kept = 0  # open elements whose white space counts
    while node is not None:
        tag = node.tag
        if tag == "-text":
            lines.write(node.text(deep=False) or "", keep=kept > 0)
        elif tag in ("td", "th"):
            lines.write(" ", keep=False)
        elif _is_block(tag):
            lines.end_line(keep=kept > 0)
        if tag in ("pre", "textarea"):
            kept += 1
        child = node.child if tag not in _SILENT and not tag.startswith("-") else None
        if child is not None:
            node = child
            continue
        while node is not None:
            tag = node.tag
            if tag in ("pre", "textarea"):
                lines.end_line(keep=True)
                kept -= 1
            elif _is_block(tag):
                lines.end_line(keep=kept > 0)
            if node is root or node.next is not None:
                node = None if node is root else node.next
                break
            node = node.parent
