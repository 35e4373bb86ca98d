"""Check that every link inside a built site leads somewhere: to a file, and to the part of it that is named.

Knows HTML. Does not ask the network: links to other sites are counted alone.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.parts: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.parts.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken_links(site: Path) -> tuple[int, list[str]]:
    """Return how many links inside a site there are, and in words those that lead nowhere."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found, count = [], 0
    for path, page in pages.items():
        for link in page.links:
            parsed = urlsplit(link)
            if parsed.scheme or parsed.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parsed.path)).resolve() if parsed.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                found.append(f"{path.relative_to(site)}: {link} leads to no file")
            elif parsed.fragment and target in pages and unquote(parsed.fragment) not in pages[target].parts:
                found.append(f"{path.relative_to(site)}: {link} names no part of that page")
    return count, found


if __name__ == "__main__":
    checked, broken = broken_links(Path(sys.argv[1]).resolve())
    print("\n".join([*broken, f"{checked} links, {len(broken)} broken"]))
    sys.exit(1 if broken else 0)
