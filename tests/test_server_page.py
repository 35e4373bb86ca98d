"""The server's page in a headless Chromium, before a real `tttnn serve` with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, Page
from tests.served import NAME, QUERY, Server, events

pytest.importorskip("starlette", reason="the extra serve is not installed")

TOKENS = 80

# What the page shows, in the order in which it is put there: neighbors, the points of the curve, the answers' letters.
RECORDER = """
window.shown = [];
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
addEventListener("DOMContentLoaded", () => {
  new MutationObserver((records) => {
    for (const { target, addedNodes } of records) {
      if (!addedNodes.length) continue;
      if (target.id === "neighbors-shown") shown.push(["neighbors", addedNodes.length]);
      if (target.id === "loss") shown.push(["points", addedNodes[0].querySelectorAll("circle").length]);
      if (target.id === "adapted" || target.id === "base") shown.push([target.id, target.textContent.length]);
    }
  }).observe(document.body, { childList: true, subtree: true });
});
"""


@pytest.fixture(scope="module")
def server(taught: Path) -> Iterator[Server]:
    running = Server(taught)
    yield running
    assert running.stop() == 0
    assert "internal_error" not in running.errors()


def opened(browser: Browser, server: Server, *, width: int = 1280, dark: bool = False) -> Page:
    """Open the page, when it knows what is served."""
    page = browser.page(width=width, dark=dark)
    page.before(RECORDER)
    page.open(f"http://127.0.0.1:{server.port}/")
    page.wait("document.getElementById('about').textContent.includes('documents')")
    return page


def ask(page: Page, **fields: Any) -> None:
    """Fill the form, send it, and wait for the end."""
    page.fill(**{"query": QUERY, "tokens": TOKENS, "neighbors": 3} | fields)
    page.value("document.getElementById('go').click()")
    page.wait("/^Done/.test(document.getElementById('status').textContent)")


@pytest.fixture(scope="module")
def told(server: Server) -> dict[str, Any]:
    """What the server says to the same request: neighbors, losses, both texts."""
    asked = {"prompt": QUERY, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    parts = events(server.raw("/v1/completions", asked | {"tttnn": {"num_neighbors": 3, "events": True}}))
    named = [part.split("\ndata: ") for part in parts if part.startswith("event: ")]
    neighbors = json.loads(named[0][1])["neighbors"]
    losses = [json.loads(data)["loss"] for name, data in named if name == "event: step"]
    whole = server.complete(QUERY, max_tokens=TOKENS, tttnn={"num_neighbors": 3, "compare": True})
    return {
        "neighbors": neighbors,
        "losses": losses,
        "adapted": whole["choices"][0]["text"],
        "base": whole["tttnn"]["base"][0],
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_query_from_its_neighbors_to_its_receipt(
    browser: Browser, server: Server, told: dict[str, Any], width: int, dark: bool
) -> None:
    page = opened(browser, server, width=width, dark=dark)
    ask(page)
    # In the order in which it happens: neighbors before a step, then a point a step, then the answers.
    shown = page.value("shown")
    assert shown[0] == ["neighbors", 3]
    assert [what for what in shown if what[0] == "points"] == [["points", n] for n in (1, 2, 3, 4)]
    kinds = [what[0] for what in shown]
    assert max(i for i, kind in enumerate(kinds) if kind == "points") < kinds.index("adapted")

    # Each neighbor with its source, distance and what it did to the loss.
    rows = page.value(
        "[...document.querySelectorAll('#neighbors-shown tr.neighbor')].map((row) =>"
        " [...row.cells].map((cell) => cell.querySelector('[data-value]')?.dataset.value ?? cell.textContent.trim()))"
    )
    assert [row[1].removesuffix(" helped most") for row in rows] == [
        neighbor["source"] for neighbor in told["neighbors"]
    ]
    assert [float(row[2]) for row in rows] == pytest.approx([n["distance"] for n in told["neighbors"]], abs=1e-3)
    moved = [after - before for before, after in zip(told["losses"], told["losses"][1:], strict=False)]
    assert [float(row[3]) for row in rows] == pytest.approx(moved, abs=1e-9)
    assert told["losses"][-1] < told["losses"][0]
    most = page.value(
        "[...document.querySelectorAll('#neighbors-shown tr.neighbor')].findIndex(r => r.matches('.most *'))"
    )
    assert most == moved.index(min(moved))
    heights = page.value("[...document.querySelectorAll('#loss circle')].map((dot) => Number(dot.getAttribute('cy')))")
    assert sorted(heights) == [y for _, y in sorted(zip([-loss for loss in told["losses"]], heights, strict=True))]
    assert page.value("document.querySelector('#loss svg').getAttribute('aria-label')")

    # Both answers, with what is only in one of them marked.
    assert page.text("adapted") == told["adapted"]
    assert page.text("base") == told["base"]
    for name, other in (("adapted", "base"), ("base", "adapted")):
        plain = page.value(
            f"(() => {{ const copy = document.getElementById('{name}').cloneNode(true);"
            " for (const mark of copy.querySelectorAll('mark')) mark.remove(); return copy.textContent; })()"
        )
        rest = iter(told[other].split())
        assert all(word in rest for word in plain.split()), "what is not marked must be in the other one, in order"
    assert page.value("document.querySelectorAll('#adapted mark').length")
    place = (
        "['adapted', 'base'].map((id) => document.getElementById(id).closest('article').getBoundingClientRect().top)"
    )
    tops = page.value(place)
    assert (tops[0] == tops[1]) == (width == 1280), "side by side where there is room"

    # Seconds by stage: a bar, and the same as numbers.
    widths = page.value("[...document.querySelectorAll('#time rect')].map((bar) => Number(bar.getAttribute('width')))")
    seconds = page.value("[...document.querySelectorAll('#stages [data-value]')].map((s) => Number(s.dataset.value))")
    assert len(widths) == len(seconds) > 2
    assert [w / sum(widths) for w in widths] == pytest.approx([s / sum(seconds) for s in seconds], abs=0.01)

    # The receipt: copied whole, and replayed to the last bit.
    page.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    page.value("document.getElementById('copy').click()")
    page.wait("document.getElementById('replayed').textContent.includes('opied')")
    receipt = json.loads(page.value("navigator.clipboard.readText()"))
    assert [neighbor["id"] for neighbor in receipt["adaptations"][0]["report"]["neighbors"]] == [
        neighbor["id"] for neighbor in told["neighbors"]
    ]
    page.value("document.getElementById('replay').click()")
    page.wait("document.getElementById('replayed').textContent.includes('same to the last bit')")

    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("violations") == []
    assert page.console == []
    page.close()


def report(page: Page) -> dict[str, Any]:
    """The report in the receipt that the page shows."""
    held: dict[str, Any] = json.loads(page.value("document.getElementById('receipt').value"))["adaptations"][0][
        "report"
    ]
    return held


def test_a_mode_of_those_that_the_server_can_serve(
    browser: Browser, server: Server, taught: Path, told: dict[str, Any]
) -> None:
    choices = "[...document.getElementById('mode').options].map((option) => option.value)"
    closed = "['neighbors', 'context'].filter((id) => document.getElementById(id).disabled)"
    page = opened(browser, server)
    assert page.value(choices) == ["exact", "base", "auto"]
    assert page.value("document.getElementById('mode').value") == "exact"
    # The model as it is: nothing is found, nothing is trained.
    ask(page, mode="base")
    assert page.value(closed) == ["neighbors", "context"]
    assert page.text("how") == "Not adapted"
    assert page.text("adapted") == page.text("base") == told["base"]
    assert not page.value("document.getElementById('training').checkVisibility()")
    # Trained, and read before the text.
    ask(page, mode="exact", context=2, tokens=10)
    assert page.value(closed) == []
    read = sum(row["tokens"] > 0 for row in report(page)["context"])
    assert 1 <= read <= len(report(page)["context"]) == 2
    assert page.text("how").startswith(f"Adapted: trained on 3 neighbors, {read} neighbor")
    assert page.text("how").endswith(" read before it")
    # A field without a value is left to the server; a limit of seconds goes with the request.
    ask(page, neighbors="", context="", deadline=500)
    assert len(report(page)["neighbors"]) == 3
    assert report(page)["settings"]["deadline_ms"] == pytest.approx(500_000, rel=0.1)
    page.close()

    # Once there are experts, they may be chosen.
    command = ["precompute", str(taught / "store"), "--model", str(taught / NAME), "--documents", "12"]
    flags = ("--max-length", "48", "--rank", "4", "--learning-rate", "3e-3")
    subprocess.run([sys.executable, "-m", "tttnn", *command, *flags], check=True, capture_output=True)
    page = opened(browser, server)
    assert page.value(choices) == ["exact", "base", "auto", "instant"]
    ask(page, mode="instant")
    assert page.value(closed) == ["neighbors"]
    merged = len(report(page)["experts"]["used"])
    assert page.text("how") == f"Adapted: {merged} {'expert' if merged == 1 else 'experts'} merged"
    assert merged > 0 == report(page)["steps"]
    assert page.console == []
    page.close()


def test_its_own_policy_keeps_everything_else_out(browser: Browser, server: Server) -> None:
    _, headers, _ = server.request("GET", "/")
    assert headers["content-security-policy"].startswith("default-src 'self';")
    page = opened(browser, server)
    page.value("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }))")
    page.wait("violations.includes('img-src')")
    page.value(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
    )
    page.wait("violations.some((what) => what.startsWith('script-src'))")
    assert page.value("window.ran === undefined")
    assert page.console
    page.close()
