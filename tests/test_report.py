"""The report: numbers as in the results, safe with any text, whole in a browser, silent about texts when asked."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.result_files import CURVE, GROUPS, METHODS, write_results
from tttnn.cli.program import app
from tttnn.errors import ConfigError, MissingExtraError
from tttnn.evaluation.bootstrap import PILE_WEIGHTS
from tttnn.evaluation.result_file import read_results
from tttnn.evaluation.results import ALL, PILE_ALL
from tttnn.report.data import chosen_depths
from tttnn.report.html import comma_separated, escape, plain, signed, significant, table
from tttnn.report.labels import spread
from tttnn.report.page import WrittenReport, write_report
from tttnn.report.published_curves import TASKS, TOTAL, matching_run, published
from tttnn.report.runs import read_runs
from tttnn.store.document import text_digest

FEW = {"Github": (0.62, 0.78), "PEPs": (0.83, 1.04)}
TEXTS = {
    "query": "the secret-query ends here",
    "scored": "the secret-scored begins",
    "neighbor": "a secret-neighbor text",
    "before": "secret-before",
    "after": "secret-after",
}


class _Page(HTMLParser):
    """Collects tags, what a browser would fetch, and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WrittenReport]:
    """A report of two protocols with every method and part."""
    folder = tmp_path_factory.mktemp("report")
    groups = {name: GROUPS[name] for name in ("Github", "Books3", "PEPs")}
    write_results(folder / "split.jsonl", groups=groups, documents=3, methods=METHODS[:6], texts=TEXTS)
    write_results(folder / "full.jsonl", groups=FEW, documents=2, protocol="full", methods=("base", "ttt-nn"))
    report = write_report(
        [folder / "split.jsonl", folder / "full.jsonl"], folder / "page.html", reference=True, command="tttnn report x"
    )
    return folder, report


def test_numbers_are_those_of_the_results(full_report: tuple[Path, WrittenReport]) -> None:
    folder, report = full_report
    summary = read_results(folder / "split.jsonl").summary()
    rows = rows_of(folder / "page_files" / "summary-split.csv")
    assert len(rows) == len(summary.rows)
    for row, held in zip(rows, summary.rows, strict=True):
        assert (row["group"], row["method"], int(row["k"])) == (held.group, held.method, held.k)
        assert float(row["ratio"]) == held.ratio.value
        assert (float(row["ratio_low"]) if row["ratio_low"] else held.ratio.high) == held.ratio.low
        assert float(row["bits_per_byte"]) == held.bits_per_byte
        assert float(row["seconds"]) == held.seconds
    total = summary.total(20, method="ttt-nn")
    assert f"{total.ratio.value:.3f} [{total.ratio.low:.3f},\u00a0{total.ratio.high:.3f}]" in report.headline
    page = report.page.read_text(encoding="utf-8")
    weighted = summary.total(20, method="ttt-nn", group=PILE_ALL)
    assert f"shares of the Pile the ratio is {weighted.ratio.value:.3f}" in page
    assert f"{summary.pile_weight:.1f} %" in page


def test_every_document_stands_in_the_table(full_report: tuple[Path, WrittenReport]) -> None:
    folder, _ = full_report
    rows = rows_of(folder / "page_files" / "documents-split.csv")
    lines = read_results(folder / "split.jsonl").lines
    assert len(rows) == sum(len(line.points) for line in lines)
    by_key = {(int(row["document"]), row["method"], int(row["k"])): float(row["bits_per_byte"]) for row in rows}
    for line in lines:
        assert by_key[line.document, line.method, line.points[-1].k] == line.bits_per_byte()


def markdown_of(path: Path) -> dict[str, list[list[str]]]:
    """The tables of a file, by their heading: rows of cells, the heads left out."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            tables.setdefault(heading, []).append(cells)
    assert all(len({len(row) for row in rows}) == 1 for rows in tables.values())
    return {heading: rows[1:] for heading, rows in tables.items()}


def test_markdown_tables_hold_the_numbers(full_report: tuple[Path, WrittenReport]) -> None:
    folder, report = full_report
    path = folder / "page_files" / "tables-split.md"
    assert path in report.tables
    tables = markdown_of(path)
    result = read_results(folder / "split.jsonl")
    summary = result.summary()
    base = result.of("base")
    for group, heading in ((ALL, "All documents"), (PILE_ALL, "Pile-weighted"), ("Github", "Github")):
        shown = {(row[0], int(row[1])): row for row in tables[heading]}
        assert ("base", 0) in shown
        held = [row for row in summary.rows if row.group == group and row.k > 0]
        assert len(shown) == len(held) + 1
        for row in held:
            cells = shown[row.method, row.k]
            assert cells[2:5] == [str(row.documents), f"{row.bits_per_byte:.4f}", str(row.ratio)]
            ratios = [
                line.bits_per_byte(row.k) / base[d].bits_per_byte()
                for d, line in result.of(row.method).items()
                if group == ALL or (line.group in PILE_WEIGHTS if group == PILE_ALL else line.group == group)
            ]
            assert len(ratios) == row.documents
            assert cells[5:7] == [str(sum(ratio > 1 for ratio in ratios)), f"{max(ratios):.3f}"]
    against = dict(tables["ttt-nn against each other method"])
    other = next(row for row in result.compare("ttt-nn", METHODS[2]) if row.group == ALL)
    assert against[f"ttt-nn ({other.k_a}) / {METHODS[2]} ({other.k_b})"] == str(other.ratio)
    components = {row[0]: row for row in tables["Components, each method at its largest k"]}
    assert sorted(components) == ["Books3", "Github", "PEPs", "Pile-weighted", "all documents"]
    one = summary.total(20, method="ttt-nn", group="PEPs").ratio
    assert components["PEPs"][3] == f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def test_markdown_tables_take_any_name(tmp_path: Path) -> None:
    name = "a|b\n| c | *d* <i>[x](y)"
    write_results(
        tmp_path / "r.jsonl", groups={name: (0.6, 0.8), "plain": (0.7, 0.9)}, documents=2, methods=METHODS[:2]
    )
    report = write_report([tmp_path / "r.jsonl"], tmp_path / "page.html")
    path = next(path for path in report.tables if path.suffix == ".md")
    assert "*d*" not in path.read_text(encoding="utf-8")
    assert "<i>" not in path.read_text(encoding="utf-8").replace("\\<", "")
    assert len(markdown_of(path)["Components, each method at its largest k"]) == 3


def test_page_needs_nothing_else(full_report: tuple[Path, WrittenReport]) -> None:
    _, report = full_report
    text = report.page.read_text(encoding="utf-8")
    page = _Page(text)
    assert not {"script", "iframe", "object", "embed", "base", "image"} & set(page.tags)
    assert not page.handlers
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "Content-Security-Policy" in text
    assert not re.search(r"\b(nan|inf)\b", " ".join(page.words), re.IGNORECASE)


def test_every_figure_has_a_caption_with_documents_and_a_png(full_report: tuple[Path, WrittenReport]) -> None:
    _, report = full_report
    text = report.page.read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    assert len(captions) == text.count("<figure") == len(report.figures) == 12
    assert all(re.search(r"\d+ documents?\b", caption) for caption in captions)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.figures)
    assert text.count("<caption>") == text.count("<table>")


def test_page_is_the_same_again(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.jsonl", groups=FEW, documents=1, methods=METHODS[:2])
    first, again = (write_report([path], tmp_path / name).page.read_bytes() for name in ("a.html", "b.html"))
    assert first == again


def test_nothing_is_replaced_unless_asked(tmp_path: Path) -> None:
    results = write_results(tmp_path / "r.jsonl", groups=FEW, documents=1, methods=METHODS[:2])
    made = write_report([results], tmp_path / "a.html")
    names = sorted(path.name for path in (made.page, *made.figures, *made.tables))
    assert len(names) > 5
    for path in (made.page, *made.figures, *made.tables):
        kept = tmp_path / path.relative_to(tmp_path).as_posix().replace("a", "b", 1)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("mine")
        with pytest.raises(FileExistsError, match=f"{kept.name}: is there already. --force"):
            write_report([results], tmp_path / "b.html")
        assert [
            (entry.name, entry.read_text())
            for entry in tmp_path.rglob("*")
            if entry.is_file() and entry.relative_to(tmp_path).parts[0].startswith("b")
        ] == [(kept.name, "mine")]
        kept.unlink()
    (tmp_path / "b_files" / "summary-split.csv").write_text("mine")
    again = write_report([results], tmp_path / "b.html", force=True)
    assert len(again.figures) + len(again.tables) + 1 == len(names)
    assert "mine" not in (tmp_path / "b_files" / "summary-split.csv").read_text()
    for other in (results, Path(f"{results}.seconds")):
        with pytest.raises(FileExistsError, match="must not be a file that is read meanwhile"):
            write_report([results], other, force=True)
    (tmp_path / "c_files").write_text("mine")
    with pytest.raises(FileExistsError, match="c_files: must be a folder or a new name"):
        write_report([results], tmp_path / "c.html", force=True)


def test_cases_are_read_with_their_texts(full_report: tuple[Path, WrittenReport]) -> None:
    _, report = full_report
    words = " ".join(_Page(report.page.read_text(encoding="utf-8")).words)
    assert all(text in words for text in TEXTS.values())
    assert len(re.findall(r"[ABCXYZ] · ", words)) == 6 + 4  # nine documents, then four, two of them the worst


def test_without_text_no_text_is_left(tmp_path: Path) -> None:
    write_results(tmp_path / "r.jsonl", groups=FEW, documents=2, methods=METHODS[:2], texts=TEXTS)
    report = write_report([tmp_path / "r.jsonl"], tmp_path / "page.html", texts=False)
    everything = b"".join(path.read_bytes() for path in [report.page, *(tmp_path / "page_files").iterdir()])
    assert b"secret" not in everything
    assert b"Github" in everything
    with pytest.raises(ConfigError, match="must be left out where texts are"):
        write_report([tmp_path / "r.jsonl"], tmp_path / "page.html", texts=False, documents=tmp_path / "r.jsonl")


HOSTILE = {
    "query": "</pre><script>alert('q')</script> \x00 \u202egnp.exe \ud800 end",
    "scored": "<img src=http://127.0.0.1:9/x onerror=alert(1)>",
    "neighbor": "]]></style><svg onload=alert(2)>",
    "before": "$title ${body} %s {0}",
    "after": "\u0645\u0631\u062d\u0628\u0627 <!-- ",
}


def test_hostile_texts_and_names_stay_text(tmp_path: Path) -> None:
    names = {
        "<script>alert('g')</script>": (0.8, 0.9),
        "=HYPERLINK(1) $x^2$ \u202eabc\x00\ndef": (0.9, 0.95),
        "\u05e9\u05dc\u05d5\u05dd " + "x" * 300: (1.0, 1.01),
    }
    methods = ("base", "ttt-nn", "<b>bold</b>&amp;\x07")
    write_results(tmp_path / "r.jsonl", groups=names, documents=2, methods=methods, texts=HOSTILE)
    report = write_report([tmp_path / "r.jsonl"], tmp_path / "page.html")
    text = report.page.read_bytes().decode("utf-8")
    page = _Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert not page.handlers
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search("[\x00\x07\u202e\ud800]", text)
    words = " ".join(page.words)
    for shown in (HOSTILE["scored"], HOSTILE["neighbor"], HOSTILE["before"], "<script>alert('g')</script>"):
        assert shown in words
    table_of = (tmp_path / "page_files" / "summary-split.csv").read_text(encoding="utf-8")
    assert "'=HYPERLINK(1)" in table_of
    assert ",=HYPERLINK" not in table_of


@pytest.mark.parametrize(
    ("methods", "groups", "documents"),
    [
        (("base",), FEW, 2),
        (("base", "ttt-nn"), {"Github": (0.6, 0.8)}, 1),
        (("base", "ttt-nn", "in-context"), {"Github": (0.6, 0.8), "FreeLaw": (0.8, 0.9), "own texts": (0.7, 0.9)}, 1),
        (("base", "dynamic"), {"own texts": (0.7, 0.9)}, 3),
    ],
    ids=["base-only", "one-document", "groups-of-one", "no-neighbors"],
)
def test_little_to_report(
    tmp_path: Path, methods: tuple[str, ...], groups: dict[str, tuple[float, float]], documents: int
) -> None:
    write_results(tmp_path / "r.jsonl", groups=groups, documents=documents, methods=methods, seconds=False)
    report = write_report([tmp_path / "r.jsonl"], tmp_path / "page.html", reference=True)
    words = " ".join(_Page(report.page.read_text(encoding="utf-8")).words)
    assert not re.search(r"\b(nan|inf|None)\b", words)
    if methods == ("base",):
        assert "Only the base model was measured" in words
        assert not report.figures
    if len(groups) * documents == 1:
        assert "One document gives no interval" in words
        assert "[" not in report.headline
    if len(groups) == 3:  # components of one document each: nothing is known of their spread
        rows = rows_of(tmp_path / "page_files" / "summary-split.csv")
        weighted = [row for row in rows if row["group"] == PILE_ALL and row["method"] == "ttt-nn"]
        assert {(row["documents"], row["ratio_low"]) for row in weighted} == {("2", "")}
        assert "Nothing is known about the spread of components with one document (FreeLaw, Github)" in words
        assert "the ratio is " in words
        assert "no interval" in words
    for path in (path for path in report.tables if path.suffix == ".csv"):
        for row in rows_of(path):
            assert all(value is not None and value.lower() not in ("nan", "inf") for value in row.values())
            if row.get("documents") == "1" and "ratio_low" in row:
                assert row["ratio_low"] == ""


def test_files_without_results_are_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.jsonl", groups={}, methods=("base",))
    with pytest.raises(ConfigError, match=r"r\.jsonl: must hold at least one measured document, got none"):
        write_report([path], tmp_path / "page.html")
    with pytest.raises(ConfigError, match="at least one file"):
        write_report([], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_files_of_one_evaluation_are_put_together(tmp_path: Path) -> None:
    whole = write_results(tmp_path / "whole.jsonl", groups=FEW, methods=METHODS[:4])
    first = _with_methods(whole, tmp_path / "a.jsonl", METHODS[:2])
    second = _with_methods(whole, tmp_path / "b.jsonl", ("base", *METHODS[2:4]))
    runs = read_runs([first, second])
    assert [run.name for run in runs] == ["split"]
    assert runs[0].summary == read_results(whole).summary()
    assert [read.path.name for read in runs[0].files] == ["a.jsonl", "b.jsonl"]


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    first = write_results(tmp_path / "a.jsonl", groups=FEW, methods=METHODS[:2])
    rate = {"methods": {"base": {}, "ttt-nn": {"learning_rate": 1e-4}}}
    second = write_results(tmp_path / "b.jsonl", groups=FEW, methods=METHODS[:2], settings=rate)
    assert [run.name for run in read_runs([first, second])] == ["split (1)", "split (2)"]


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    first = write_results(tmp_path / "a.jsonl", groups=FEW, methods=METHODS[:2])
    second = write_results(tmp_path / "b.jsonl", groups=FEW, methods=METHODS[:2], seed=1)
    with pytest.raises(ConfigError, match="document 0 under base at k = 0 must be as in the other files"):
        read_runs([first, second])
    changed = tmp_path / "c.jsonl"
    changed.write_text(first.read_text().replace(f'"digest": "{0:032x}"', f'"digest": "{99:032x}"'))
    with pytest.raises(ConfigError, match=f"document 0 must be the one of the other files .digest {0:032x}"):
        read_runs([first, changed])


def _with_methods(source: Path, path: Path, methods: tuple[str, ...]) -> Path:
    """Copy a file of results with some of its methods."""
    first, *rows = source.read_text().splitlines()
    header = json.loads(first)
    header["settings"]["methods"] = {name: header["settings"]["methods"][name] for name in methods}
    kept = [row for row in rows if json.loads(row)["method"] in methods]
    path.write_text("\n".join([json.dumps(header), *kept]) + "\n")
    shutil.copy(f"{source}.seconds", f"{path}.seconds")
    return path


def test_guard_counts_what_it_chose(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.jsonl", groups=FEW, methods=METHODS[:4])
    run = read_runs([path])[0]
    lines = run.result.of("ttt-nn-guard")
    said = [line.points[-1].extra["chosen"] for line in lines.values()]
    counted = chosen_depths(run.result, "ttt-nn-guard", run.main)
    assert {k: said.count(k) for k in set(said)} == dict(counted)
    for line in lines.values():  # without its word, the curve of ttt-nn tells
        line.points[-1].extra.clear()
    assert chosen_depths(run.result, "ttt-nn-guard", run.main) == counted
    report = write_report([path], tmp_path / "page.html")
    rows = rows_of(tmp_path / "page_files" / "chosen-split-ttt-nn-guard.csv")
    assert sum(int(row["documents"]) for row in rows) == len(lines)
    assert "kept the base model for" in report.page.read_text(encoding="utf-8")


def test_worst_component_is_named_with_its_interval(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.jsonl", groups=FEW, methods=METHODS[:3])
    write_report([path], tmp_path / "page.html")
    rows = {row["method"]: row for row in rows_of(tmp_path / "page_files" / "harm-split.csv")}
    held = read_results(path).summary().total(20, method="ttt-nn", group="PEPs")
    assert rows["ttt-nn"]["worst_component"] == "PEPs"
    assert float(rows["ttt-nn"]["worst_ratio_high"]) == held.ratio.high


def test_texts_come_from_documents_where_the_results_hold_none(tmp_path: Path) -> None:
    texts = ["first half of it, é and more. The SECOND half \u4e16 of it", "another document with some text in it"]
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text("".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in texts))
    path = write_results(tmp_path / "r.jsonl", groups={"own texts": (0.8, 0.9)}, documents=2, methods=METHODS[:2])
    rows = path.read_text()
    for position, text in enumerate(texts):
        cut = len(text.encode()) // 2 + 4
        rows = rows.replace(f'"digest": "{position:032x}"', f'"digest": "{text_digest(text)}"')
        pattern = rf'("document": {position}, .*?"num_bytes": )\d+(.*?"query_bytes": )\d+'
        rows = re.sub(pattern, rf"\g<1>{len(text.encode()) - cut}\g<2>{cut}", rows)
    path.write_text(rows)
    page = write_report([path], tmp_path / "page.html", documents=corpus).page.read_text(encoding="utf-8")
    data = texts[0].encode()
    cut = len(data) // 2 + 4
    assert f"<pre dir=auto>{data[:cut].decode()}</pre>" in page
    assert f"<pre dir=auto>{data[cut:].decode()}</pre>" in page
    corpus.write_text(json.dumps({"text": "other"}) + "\n")
    with pytest.raises(ConfigError, match="document 0 must be the one of the results"):
        write_report([path], tmp_path / "page.html", documents=corpus)


def test_published_figures_and_names() -> None:
    source, runs = published()
    assert "2305.18466" in source
    by_name = {run.name: run for run in runs}
    # Table of the paper, GPT-2 117M: the total and the code, before and after 50 neighbors.
    assert by_name["GPT-2 117M"].curves[TOTAL][0] == pytest.approx(1.208, abs=5e-4)
    github = by_name["GPT-2 117M"].curve("Github")
    assert github is not None
    assert (github[0], github[50]) == pytest.approx((1.918, 0.691), abs=5e-4)
    assert by_name["GPT-2 117M"].curve("no such component") is None
    assert set(TASKS) == set(PILE_WEIGHTS)
    for run in runs:
        assert set(run.curves) == {TOTAL, *TASKS.values()}
        assert {len(curve) for curve in run.curves.values()} == {51}
    found = {
        (model, protocol): matching_run(model, protocol)
        for model in ("openai-community/gpt2", "EleutherAI/gpt-neo-1.3B", "smollm2-135m")
        for protocol in ("full", "split-bare", "split")
    }
    names = {key: run.name for key, run in found.items() if run is not None}
    assert names == {
        ("openai-community/gpt2", "full"): "GPT-2 117M",
        ("openai-community/gpt2", "split-bare"): "GPT-2 117M, disjoint halves",
        ("EleutherAI/gpt-neo-1.3B", "full"): "GPT-Neo 1.3B",
    }


def test_the_model_is_named_in_full_where_the_results_do(tmp_path: Path) -> None:
    full = "SmolLM2-135M-Instruct, its 4-bit weights"
    model = {"name": "smollm2-135m", "fingerprint": "0"}
    described = {"model": model | {"description": full}}
    with_it = write_results(tmp_path / "a.jsonl", groups=FEW, methods=METHODS[:2], settings=described)
    named = write_report([with_it], tmp_path / "a.html")
    assert f"The model is {full}." in named.page.read_text(encoding="utf-8")
    assert full in (tmp_path / "a_files" / "tables-split.md").read_text(encoding="utf-8")
    without = write_results(tmp_path / "b.jsonl", groups=FEW, methods=METHODS[:2], settings={"model": model})
    (run,) = read_runs([without, with_it])  # one evaluation, begun by an earlier version
    assert run.result.settings["model"]["description"] == full
    assert "The model is" not in write_report([without], tmp_path / "b.html").page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("model", "said"), [("gpt2", "in bits per byte"), ("smollm2", "ratio to its own base model")])
def test_reference_lays_curves_beside_the_published_ones(tmp_path: Path, model: str, said: str) -> None:
    settings = {"model": {"name": model, "fingerprint": "0"}}
    path = write_results(
        tmp_path / "r.jsonl", groups=FEW, documents=2, protocol="full", methods=METHODS[:2], settings=settings
    )
    page = write_report([path], tmp_path / "page.html", reference=True).page.read_text(encoding="utf-8")
    assert said in page
    rows = rows_of(tmp_path / "page_files" / "reference-full.csv")
    assert {row["task"] for row in rows} == {"pile_github", "pile_all"}  # PEPs are no part of the Pile
    assert len({row["run"] for row in rows}) == (2 if model == "gpt2" else 5)
    ours = [row for row in rows if row["run"] == "ours" and row["task"] == "pile_github"]
    held = read_results(path).summary().total(20, method="ttt-nn", group="Github")
    assert [int(row["k"]) for row in ours] == list(CURVE)
    assert float(ours[-1]["bits_per_byte"]) == held.bits_per_byte


def test_numbers_are_written_for_readers() -> None:
    assert [significant(value) for value in (None, 0.0, 0.04567, 0.5, 13.14, 999.6, 45678.0, 1.5e9)] == [
        *("\u2013", "0", "0.0457", "0.500", "13.1", "1,000", "45,700", "1.50e9"),
    ]
    assert [signed(value) for value in (0.0421, -0.0421, -0.0001, 0.0)] == ["+0.042", "\u22120.042", "0.000", "0.000"]
    assert plain("a\r\nb\tc\x00\u202e\ud800") == "a\nb\tc\ufffd\ufffd\ufffd"
    assert escape('<a b="c">&') == "&lt;a b=&quot;c&quot;&gt;&amp;"
    assert '<th scope="row">&lt;x&gt;</th>' in table(["n"], [["<x>"]], caption="c")
    assert comma_separated([{"a": 0.1, "b": None, "c": "@x"}]) == "a,b,c\n0.1,,'@x\n"


def test_names_move_apart_as_little_as_needed() -> None:
    assert spread([0.0, 1.0], 0.1, 0, 1) == [0.0, 1.0]
    assert spread([0.5, 0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.4, 0.5, 0.6])
    moved = spread([0.01, 0.02, 0.03, 0.5, 0.99, 1.0], 0.1, 0, 1)
    assert moved == pytest.approx([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_results(tmp_path / "r.jsonl", groups=FEW, documents=2, methods=METHODS[:2])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'tttnn[plot]'")):
        write_report([path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_command_writes_the_page(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.jsonl", groups=FEW, documents=2, methods=METHODS[:2], texts=TEXTS)
    out = tmp_path / "made" / "page.html"
    ran = CliRunner().invoke(app, ["report", str(path), "-o", str(out), "--without-text", "--json"])
    assert ran.exit_code == 0, ran.output
    described = json.loads(ran.stdout)
    assert described["page"] == str(out)
    assert all(Path(file).is_file() for file in described["figures"] + described["tables"])
    page = out.read_text(encoding="utf-8")
    assert "--without-text" in page
    assert "secret" not in page
    assert described["headline"] in " ".join(_Page(page).words)


# ---------------------------------------------------------------------------------------------------------------------
# In a browser
# ---------------------------------------------------------------------------------------------------------------------


def _browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(names)} is on the PATH")
    return found


def _open(browser: str, page: Path, profile: Path, *flags: str) -> list[str]:
    """Open a page; return what the browser wrote on its console."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--window-size=1366,768", *flags, page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def test_page_in_a_browser(full_report: tuple[Path, WrittenReport], tmp_path: Path) -> None:
    from matplotlib.image import imread

    browser = _browser()
    _, report = full_report
    # The page's own policy refuses whatever it would fetch, and the browser says so: first that this is heard at all.
    planted = tmp_path / "planted.html"
    text = report.page.read_text(encoding="utf-8")
    planted.write_text(text.replace("</header>", '<img src="http://127.0.0.1:9/x.png"></header>'), encoding="utf-8")
    shot = tmp_path / "shot.png"
    assert _open(browser, planted, tmp_path / "profile", f"--screenshot={shot}")
    assert not _open(browser, report.page, tmp_path / "profile", f"--screenshot={shot}")
    image = imread(shot)[..., :3]
    assert image.shape == (768, 1366, 3)
    ink = (np.abs(image - image[0, 0]).max(2) > 0.2).mean()
    assert 0.01 < ink < 0.5, f"{ink:.1%} of the first screen differ from its background"
    printed = tmp_path / "page.pdf"
    assert not _open(browser, report.page, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) >= 3


def test_totals_exist_for_all(full_report: tuple[Path, WrittenReport]) -> None:
    folder, _ = full_report
    rows = rows_of(folder / "page_files" / "summary-full.csv")
    assert {row["group"] for row in rows} == {*FEW, ALL, PILE_ALL}
