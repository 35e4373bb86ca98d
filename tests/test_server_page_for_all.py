"""The server's page without a mouse, without sight, on paper, and where the server does not answer."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CONTROL, SHIFT, Browser, Page
from tests.served import QUERY, Server, events, wait_until

pytest.importorskip("starlette", reason="the extra serve is not installed")

CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")
AXE = "4.14.1"
"""The version of axe-core that is fetched where npm can."""

FOCUSED = """
(() => {
  const node = document.activeElement, style = getComputedStyle(node);
  return {
    name: node.id || node.tagName,
    place: [...document.querySelectorAll("*")].indexOf(node),
    outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    seen: node.getBoundingClientRect().top < innerHeight && node.getBoundingClientRect().bottom > 0,
  };
})()
"""


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder, "--max-queue", "1")
    yield running
    assert running.stop() == 0
    assert "internal_error" not in running.errors()


def opened(browser: Browser, server: Server, *, width: int = 1280, dark: bool = False) -> Page:
    page = browser.page(width=width, dark=dark)
    page.open(f"http://127.0.0.1:{server.port}/")
    page.wait("document.getElementById('about').textContent.includes('documents')")
    page.fill(query=QUERY, tokens=16, neighbors=3)
    return page


def said(page: Page, text: str, *, where: str = "status") -> str:
    """Wait until a place says something; return all that it says."""
    page.wait(f"document.getElementById('{where}').textContent.includes({json.dumps(text)})")
    whole = str(page.value(f"document.getElementById('{where}').textContent"))
    assert whole.endswith(".")
    assert whole.count(". ") == 0, f"one sentence: {whole}"
    return whole


def focused(page: Page) -> str:
    return str(page.value("document.activeElement.id"))


def tabbed(page: Page, modifiers: int = 0) -> list[str]:
    """Press Tab until every control has had its turn; return what had the focus, from the page's first or last on."""
    seen: dict[int, str] = {}
    for _ in range(60):
        page.press("Tab", modifiers)
        at = page.value(FOCUSED)
        if at["name"] == "BODY":
            continue
        if at["place"] in seen:
            break
        assert at["outline"], f"{at['name']} does not show that it has the focus"
        assert at["seen"], f"{at['name']} has the focus out of sight"
        seen[at["place"]] = at["name"]
    places = list(seen)
    first = places.index(max(places) if modifiers & SHIFT else min(places))
    return [seen[place] for place in places[first:] + places[:first]]


# ---------------------------------------------------------------------------------------------------------------------
# Keyboard
# ---------------------------------------------------------------------------------------------------------------------

FORM = ["query", "mode", "neighbors", "context", "tokens", "temperature", "deadline", "source", "go"]
BELOW = ["receipt", "replay", "copy"]


@pytest.mark.parametrize("width", [1280, 390])
def test_tab_reaches_everything_in_the_order_of_reading(browser: Browser, server: Server, width: int) -> None:
    page = opened(browser, server, width=width)
    assert tabbed(page) == FORM + BELOW
    # Enter in a field of the form asks.
    page.value("document.getElementById('tokens').focus()")
    page.press("Enter")
    said(page, "Done")
    assert tabbed(page) == [*FORM, "neighbors-box", *["SUMMARY"] * 3, *BELOW]
    assert tabbed(page, SHIFT) == [*BELOW[::-1], *["SUMMARY"] * 3, "neighbors-box", *FORM[::-1]]
    # A neighbor's text opens, and the list scrolls.
    page.value("document.querySelector('summary').focus()")
    before = page.value("document.querySelector('.cut').getBoundingClientRect().height")
    page.press("Enter")
    page.wait("document.querySelector('details').open")
    assert page.value("document.querySelector('.cut').getBoundingClientRect().height") >= before
    # Enter on a button does what a click does.
    page.value("document.getElementById('replay').focus()")
    page.press("Enter")
    said(page, "same to the last bit", where="replayed")
    assert focused(page) in ("replay", "")
    page.close()


def test_escape_and_stop_end_what_runs(browser: Browser, server: Server) -> None:
    page = opened(browser, server)
    (engine,) = server.engines()
    for how in ("Escape", "Stop"):
        os.kill(engine, signal.SIGSTOP)  # an engine that takes its time
        page.value("document.getElementById('query').focus()")
        page.press("Enter", CONTROL)
        said_now = "document.getElementById('status').textContent"
        page.wait(f"{said_now} === 'Searching…' && !document.getElementById('stop').disabled")
        assert tabbed(page)[: len(FORM) + 1] == [*FORM, "stop"]
        if how == "Stop":
            page.value("document.getElementById('stop').focus()")
            page.press(" ")
            said(page, "Stopped")
            assert focused(page) == "go", "the focus is not lost with the button"
        else:
            page.press("Escape")
            said(page, "Stopped")
        assert page.value("document.getElementById('stop').disabled")
        os.kill(engine, signal.SIGCONT)
        wait_until(lambda: server.get("/health")[1]["running"] == 0, "an idle engine")
    page.click("go")
    said(page, "Done")
    assert page.console == []
    page.close()


# ---------------------------------------------------------------------------------------------------------------------
# Sight
# ---------------------------------------------------------------------------------------------------------------------


def _states(page: Page) -> Iterator[str]:
    """Bring the page into each of its states, with all that they show."""
    yield "before"
    page.fill(source="nowhere")
    page.click("go")
    said(page, "sources")
    yield "wrong"
    page.fill(source="")
    page.click("go")
    said(page, "Done")
    page.value("document.querySelector('details').open = true")
    yield "after"
    page.click("replay")
    said(page, "same to the last bit", where="replayed")
    page.value(
        "document.getElementById('key-field').hidden = false; document.getElementById('progress').hidden = false"
    )
    yield "all"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_labels_contrast_headings_and_landmarks(browser: Browser, server: Server, width: int, dark: bool) -> None:
    page = opened(browser, server, width=width, dark=dark)
    for state in _states(page):
        found = page.value(CHECKS)
        assert found["language"] == "en"
        assert found["title"]
        assert found["landmarks"] == [1, 1, 1]
        assert {"status", "replayed"} <= set(found["live"])
        headings = found["headings"]
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(headings)), headings
        assert found["texts"] > 20
        wrong = {name: found[name] for name in ("unnamed", "faint", "faintEdges", "twice", "nowhere") if found[name]}
        assert not wrong, (state, wrong)
        assert found["beyond"] <= 0, state
    page.close()


def test_the_checks_find_what_is_wrong(browser: Browser, server: Server) -> None:
    page = opened(browser, server)
    page.value(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<input id=go><h5>x</h5>'"
        " + '<p class=pale>pale</p><div class=wide></div>');"
        "document.querySelector('.pale').style.color = '#999';"
        "document.querySelector('.wide').style.width = '2000px'"
    )
    found = page.value(CHECKS)
    assert found["unnamed"] == ["input#go."]
    assert [each["what"] for each in found["faint"]] == ["p.pale"]
    assert found["twice"] == ["go"]
    assert found["headings"][-1] == 5
    assert found["beyond"] > 0
    page.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, from npm; it is no part of this repository."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core cannot be fetched: npm is not installed")
    at = tmp_path_factory.mktemp("axe")
    command = [npm, "pack", f"axe-core@{AXE}", "--silent", "--fetch-retries=0", "--fetch-timeout=30000"]
    try:
        done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("axe-core cannot be fetched: npm takes more than a minute")
    if done.returncode != 0:
        pytest.skip("axe-core cannot be fetched: npm fails")
    with tarfile.open(next(at.glob("*.tgz"))) as packed:
        script = packed.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode("utf-8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(browser: Browser, server: Server, axe: str, width: int, dark: bool) -> None:
    page = opened(browser, server, width=width, dark=dark)
    for state in _states(page):
        page.value(f"{axe}; 0")
        found = page.value(
            "axe.run(document, { resultTypes: ['violations'] }).then((all) => all.violations.map((one) =>"
            " [one.id, one.help, one.nodes.map((node) => node.html.slice(0, 120))]))"
        )
        assert found == [], state
    page.close()


def test_on_paper(browser: Browser, server: Server) -> None:
    page = opened(browser, server, dark=True)
    page.click("go")
    said(page, "Done")
    page.media(dark=True, kind="print")
    found = page.value(CHECKS)
    assert found["faint"] == [], "a dark screen prints dark ink"
    assert page.value("getComputedStyle(document.documentElement).getPropertyValue('--panel').trim()") == "#ffffff"
    hidden = page.value("[...document.querySelectorAll('button')].filter((button) => button.checkVisibility())")
    assert hidden == []
    assert page.value("getComputedStyle(document.getElementById('neighbors-box')).maxHeight") == "none"
    printed = base64.b64decode(page.call("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF")
    page.close()


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_field_is_said_at_the_field(browser: Browser, server: Server) -> None:
    page = opened(browser, server)
    page.fill(source="A, nowhere else")
    page.click("go")
    said(page, "sources that documents have")
    assert focused(page) == "source"
    assert page.value("document.querySelector('[aria-invalid]').getAttribute('aria-errormessage')") == "status"
    page.fill(source="A")
    page.click("go")
    said(page, "Done")
    assert page.text("how") == "Adapted to the neighbors"
    assert page.value("document.querySelector('[aria-invalid]')") is None
    sources = "[...document.querySelectorAll('.neighbor td:nth-child(2)')].map((cell) => cell.firstChild.textContent)"
    assert set(page.value(sources)) == {"A"}
    page.close()


def test_a_limit_of_seconds_that_is_too_short_is_said_at_its_field(browser: Browser, server: Server) -> None:
    page = opened(browser, server)
    page.fill(deadline=0.001, neighbors=20)
    page.click("go")
    assert said(page, "later than its deadline").startswith("The answer is predicted after ")
    assert focused(page) == "deadline"
    page.fill(deadline=100)
    page.click("go")
    said(page, "Done")
    assert page.value("document.querySelector('[aria-invalid]')") is None
    page.close()


def test_a_receipt_that_is_pasted_is_replayed_or_refused(browser: Browser, server: Server) -> None:
    report = server.post("/v1/adapt", {"query": "def quicksort("})[1]["report"]
    page = opened(browser, server)
    for pasted in (report, {"report": report}, {"adaptations": [{"report": report}]}, server.complete("The cat")):
        page.fill(receipt=json.dumps(pasted))
        page.click("replay")
        said(page, "same to the last bit", where="replayed")
        page.value("document.getElementById('replayed').textContent = ''")
    other = json.loads(json.dumps(report))
    other["neighbors"][0]["losses"][0] += 0.5
    for pasted, answer in (
        (json.dumps(other), "the losses differ by up to 5.0e-1"),
        ("{", "is JSON"),
        ("", "is JSON"),
        ("[]", "report must be one that this server gave"),
        (json.dumps(report | {"steps": -1}), "report must be one that this server gave"),
    ):
        page.fill(receipt=pasted)
        page.click("replay")
        said(page, answer, where="replayed")
        assert page.value("document.getElementById('replayed').matches('.wrong')")
    page.close()


def test_a_full_line_says_when_to_come_again_and_a_dead_engine_that_another_starts(
    browser: Browser, server: Server
) -> None:
    page, second = opened(browser, server), opened(browser, server)
    (engine,) = server.engines()
    os.kill(engine, signal.SIGSTOP)
    page.click("go")
    wait_until(lambda: server.get("/health")[1]["running"] == 1, "a running request")
    waiting = server.raw("/v1/completions", {"prompt": "The cat", "max_tokens": 2, "stream": True})
    wait_until(lambda: server.get("/health")[1]["waiting"] == 1, "a waiting request")
    second.click("go")
    told = said(second, "too much to do")
    status, headers, _ = server.request("POST", "/v1/completions", {"prompt": "x"})
    assert status == 429
    assert 0 < int(told.split("again in ")[1].split(" s")[0]) <= int(headers["retry-after"]) + 5
    os.kill(engine, signal.SIGKILL)
    said(page, "engine ended at this request")
    assert events(waiting)[-1] == "data: [DONE]"
    server.wait_ready()
    for one in (page, second):
        one.click("go")
        said(one, "Done")
        one.close()


@pytest.fixture
def closed(folder: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that wants a key, and finds nothing near enough."""
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    running = Server(folder, "--api-key-file", str(keys), "--select-max-distance", "1e-6")
    yield running
    running.stop()


def test_a_key_is_asked_for_no_neighbor_is_said_and_a_server_that_is_away(browser: Browser, closed: Server) -> None:
    page = browser.page()
    # A browser that knew the key when it opened the page, and has been told to forget it.
    basic = base64.b64encode(b"me:first-key").decode()
    page.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {basic}"})
    page.open(f"http://127.0.0.1:{closed.port}/")
    page.wait("document.getElementById('about').textContent.includes('documents')")
    page.call("Network.setExtraHTTPHeaders", headers={})
    page.count_dialogs()
    assert not page.value("document.getElementById('key').checkVisibility()")
    page.click("go")
    said(page, "wants a key")
    assert page.value("document.getElementById('key').checkVisibility()")
    assert focused(page) == "key"
    page.fill(key="another")
    page.click("go")
    said(page, "does not know this key")
    assert focused(page) == "key"
    assert page.dialogs == 0, "the page has a field for the key"
    page.fill(key="first-key", query="Something else, far from every document")
    page.click("go")
    said(page, "not adapted")
    assert page.text("how") == "Not adapted"
    assert page.value("document.querySelector('[aria-invalid]')") is None
    assert said(page, "No document is near enough", where="no-neighbors")
    assert page.value("document.getElementById('no-neighbors').checkVisibility()")
    assert not page.value("document.getElementById('loss').checkVisibility()")
    same = "document.getElementById('adapted').textContent === document.getElementById('base').textContent"
    assert page.value(same)
    assert page.value("document.getElementById('difference').textContent") == "Both answers are the same."
    assert "first-key" not in page.value("document.documentElement.outerHTML + JSON.stringify({...localStorage})")
    assert closed.stop() == 0
    page.click("go")
    said(page, "does not answer")
    page.close()


def test_who_opens_a_page_without_a_key_is_asked_by_the_browser(browser: Browser, closed: Server) -> None:
    page = browser.page()
    page.count_dialogs()
    page.call("Page.navigate", url=f"http://127.0.0.1:{closed.port}/")
    page.wait("document.body?.textContent.includes('invalid_api_key')")
    assert page.dialogs == 1
    page.close()
