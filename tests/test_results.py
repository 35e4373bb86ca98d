"""Files of results and what they say together: bootstrap, weights, comparisons at equal cost."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tttnn
from tttnn.evaluation.bootstrap import COVERAGE, PILE_WEIGHTS, paired_bootstrap, pile_weights
from tttnn.evaluation.records import Line, Measured, Point, Seconds, Skipped, Texts, UsedNeighbor
from tttnn.evaluation.result_file import ResultFile, read_results
from tttnn.evaluation.results import EvalResult

SETTINGS = {"protocol": "split", "evaluation": {"curve": [0, 2]}, "methods": {"base": {}, "zeta": {}, "alpha": {}}}


def line(document: int, method: str, group: str, nats: dict[int, float], size: int = 100, **point: int) -> Line:
    counts = {"steps": 0, "trained_tokens": 0, "context_tokens": 0} | point
    points = [Point(k, value, None, **{name: count * k for name, count in counts.items()}) for k, value in nats.items()]
    neighbors = [UsedNeighbor(7, "ab", 0.5, 9, (1, 5)), UsedNeighbor(8, "cd", 0.75, 9, None)]
    return Line(
        document, f"d{document}", group, method, "split", 50, size, 20, 40, 90, 2, "neighbors", points,
        neighbors if method != "base" else [],
    )  # fmt: skip


def measured(document: int, group: str, base: float, zeta: float, alpha: float, size: int = 100) -> Measured:
    lines = [
        line(document, "base", group, {0: base}, size),
        line(document, "zeta", group, {0: base, 2: zeta}, size, trained_tokens=30),
        line(document, "alpha", group, {0: base, 2: alpha}, size, context_tokens=10),
    ]
    seconds = [
        Seconds(document, "base", {"score": 1.0}, {0: 0.0}),
        Seconds(document, "zeta", {"train": 8.0}, {0: 0.0, 2: 8.0}),
        Seconds(document, "alpha", {"read": 2.0}, {0: 0.0, 2: 2.0}),
    ]
    return Measured(None, lines, seconds, [])


def result_of(*documents: Measured) -> EvalResult:
    result = EvalResult(SETTINGS)
    for document in documents:
        result.add(document)
    return result


RESULT = result_of(
    measured(0, "ArXiv", 100, 80, 90),
    measured(1, "ArXiv", 120, 100, 110, size=300),
    measured(2, "Github", 50, 60, 40),
    measured(3, "Own", 70, 35, 60),
)


def test_results_are_read_without_torch(tmp_path: Path) -> None:
    code = "import tttnn.evaluation.result_file, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = ResultFile(path, SETTINGS, texts=True)
    texts = [Texts(5, "zeta", "query ü", "scored", [(7, "excerpt")], "before", "after")]
    second = measured(5, "ArXiv", 1.5, 1.25, 1.0)
    written = [
        Measured(Skipped(9, "d9", "Own"), [], [], []),
        Measured(None, second.lines, second.seconds, texts),
        measured(2, "Own", 0.1, 0.3, 0.7),
    ]
    for document in written:
        file.append(document)
    file.close()
    held = read_results(path)
    assert held.settings == SETTINGS
    assert list(held.settings["methods"]) == ["base", "zeta", "alpha"]
    assert held.skipped == 1
    assert held.lines == [*written[2].lines, *written[1].lines]
    assert held.seconds[5, "zeta"] == second.seconds[1]
    assert held.texts == {(5, "zeta"): texts[0]}
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    assert rows[0]["tttnn"] == "results 2"
    assert rows[2]["points"][0].keys() == {
        "k", "nats", "query_nats", "steps", "trained_tokens", "context_tokens",
    }  # fmt: skip
    assert "query ü" not in path.read_text()


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("", "no header line"),
        ("{}\n", "no header line"),
        ('{"tttnn": "results 1", "settings": {}}\n', "must be of the format 'results 2', got 'results 1'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, first: str, words: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(first)
    with pytest.raises(tttnn.ConfigError, match=words):
        read_results(path)
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "none.jsonl")


def test_a_line_out_of_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = ResultFile(path, SETTINGS)
    file.append(measured(0, "Own", 1, 2, 3))
    file.close()
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], rows[1], rows[3], rows[2]]) + "\n")
    with pytest.raises(tttnn.ConfigError, match="line 3 must be document 0 under zeta, got document 0 under alpha"):
        read_results(path)


@pytest.mark.parametrize("beside", ["seconds", "texts"])
@pytest.mark.parametrize(
    "content", [b"notes of mine", b'{"mine": 1}\n', b"\x00\xff\n", b'{"document": 1}\n{"docu\nmine\n']
)
@pytest.mark.parametrize("texts", [False, True])
def test_what_is_not_ours_beside_results_is_kept(tmp_path: Path, beside: str, content: bytes, texts: bool) -> None:
    path, other = tmp_path / "r.jsonl", tmp_path / f"r.jsonl.{beside}"
    other.write_bytes(content)
    with pytest.raises(tttnn.ConfigError, match=rf"\.{beside}: line \d is none that an evaluation writes"):
        ResultFile(path, SETTINGS, texts=texts)
    assert other.read_bytes() == content
    assert not path.exists()
    other.unlink()
    file = ResultFile(path, SETTINGS, texts=texts)
    file.append(measured(0, "Own", 1, 2, 3))
    file.close()
    before = path.read_bytes()
    other.write_bytes(content)
    with pytest.raises(tttnn.ConfigError, match="Move the file away, or choose another --out"):
        ResultFile(path, SETTINGS, texts=texts)
    assert (other.read_bytes(), path.read_bytes()) == (content, before)


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.seconds", "r.jsonl.texts"])
def test_results_go_into_no_pipe_and_no_folder(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileExistsError, match=f"{name}: must be a regular file or nothing"):
        ResultFile(tmp_path / "r.jsonl", SETTINGS, texts=True)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=f"{name}: must be a regular file or nothing"):
        ResultFile(tmp_path / "r.jsonl", SETTINGS, texts=True)


def test_texts_of_results_that_are_gone_are_no_part_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    document = measured(0, "Own", 1, 2, 3)
    texts = [Texts(0, "zeta", "of the first", "scored", [], "before", "after")]
    for written in (Measured(None, document.lines, document.seconds, texts), document):
        file = ResultFile(path, SETTINGS, texts=bool(written.texts))
        file.append(written)
        file.close()
        held = read_results(path)
        assert list((held.texts or {}).values()) == written.texts
        assert len(held.seconds) == 3
        path.unlink()


def test_totals_are_over_bytes_and_over_the_pile() -> None:
    summary = RESULT.summary()
    zeta = summary.total(2, method="zeta")
    bits = np.array([80, 100, 60, 35]) / math.log(2)
    assert zeta.bits_per_byte == pytest.approx(bits.sum() / 600)
    assert zeta.byte_perplexity == pytest.approx(2 ** (bits.sum() / 600))
    assert zeta.word_perplexity == pytest.approx(math.exp(275 / 80))
    assert zeta.ratio.value == pytest.approx(275 / 340)
    assert zeta.difference.value == pytest.approx((275 - 340) / math.log(2) / 600)
    assert (zeta.trained_tokens, zeta.seconds, zeta.documents) == (60, 8.0, 4)
    # ArXiv is 8.96 % and Github 7.59 % of the Pile; "Own" is no component of it.
    pile = summary.total(2, method="zeta", group="pile_all")
    weight = 8.96 / (8.96 + 7.59)
    expected = weight * (180 / 400) + (1 - weight) * (60 / 100)
    assert pile.bits_per_byte == pytest.approx(expected / math.log(2))
    assert pile.documents == 3
    assert summary.pile_weight == pytest.approx(16.55)
    assert "make up 16.6 %" in str(summary) or "make up 16.5 %" in str(summary)
    assert [row.group for row in summary.rows][::5] == ["ArXiv", "Github", "Own", "all", "pile_all"]
    with pytest.raises(ValueError, match=r"k must be one of 0, 2, got 3"):
        summary.total(3, method="zeta")
    with pytest.raises(ValueError, match="method must be one of base, zeta, alpha"):
        summary.total(method="beta")


def test_a_file_of_own_components_alone_has_no_pile_total() -> None:
    summary = result_of(measured(0, "Own", 3, 2, 1)).summary()
    assert {row.group for row in summary.rows} == {"Own", "all"}
    assert "pile_all" not in str(summary)
    # Of one document an interval would have no width: none is printed, but in the heading.
    assert str(summary).count("[") == 1
    assert str(RESULT.summary()).count("[") > 1
    assert result_of().summary().rows == []


def test_method_against_method() -> None:
    rows = {row.group: row for row in RESULT.compare("zeta", "alpha")}
    assert rows["all"].difference.value == pytest.approx((275 - 300) / math.log(2) / 600)
    assert rows["all"].ratio.value == pytest.approx(275 / 300)
    assert rows["Github"].ratio.value == pytest.approx(60 / 40)
    assert (rows["all"].k_a, rows["all"].k_b) == (2, 2)
    against = {row.group: row for row in RESULT.compare("zeta", "base", 2)}
    summary = RESULT.summary().total(2, method="zeta")
    assert against["all"].ratio == summary.ratio
    assert (against["all"].k_a, against["all"].k_b) == (2, 0)
    with pytest.raises(tttnn.ConfigError, match="method must be one of base, zeta, alpha, got 'beta'"):
        RESULT.compare("beta", "base")


def test_methods_scored_on_other_text_are_not_compared() -> None:
    mixed = measured(0, "Own", 3, 2, 1)
    mixed.lines[1] = line(0, "zeta", "Own", {0: 3, 2: 2}, size=99)
    with pytest.raises(tttnn.ConfigError, match="document 0 must be scored on the same text"):
        result_of(mixed).summary()


def test_at_equal_cost_each_method_stands_at_what_it_can_afford() -> None:
    seconds = RESULT.compare_at_budget("zeta", "alpha", "seconds")
    assert seconds is not None
    # alpha spends 2 seconds at most; zeta's 2 neighbors cost 8, so that it can afford none.
    assert (seconds.budget, seconds.k_a, seconds.k_b) == (2.0, 0, 2)
    assert (seconds.cost_a, seconds.cost_b) == (0.0, 2.0)
    assert seconds.total().ratio.value == pytest.approx(340 / 300)
    tokens = RESULT.compare_at_budget("alpha", "zeta", "tokens")
    assert tokens is not None
    assert (tokens.budget, tokens.k_a, tokens.k_b) == (20.0, 2, 0)
    assert [(pair.a, pair.b) for pair in RESULT.compare_at_budgets("tokens")] == [("zeta", "alpha")]
    bare = EvalResult(SETTINGS, RESULT.lines)
    assert bare.compare_at_budget("zeta", "alpha", "seconds") is None
    assert bare.summary().total(2).seconds is None


def test_the_interval_is_that_of_resampled_documents() -> None:
    generator = np.random.default_rng(3)
    size = generator.uniform(50, 150, 30)
    before = size * generator.uniform(0.5, 1.5, 30)
    after = before * generator.normal(0.9, 0.05, 30)
    paired = paired_bootstrap([(before, after, size)], [1.0], seed=1)
    # Of the ratio of two sums, the delta method gives the standard error; the quantiles lie 1.96 of them off.
    ratio = after.sum() / before.sum()
    error = math.sqrt(((after - ratio * before) ** 2).sum()) / before.sum()
    assert paired.ratio.value == pytest.approx(ratio)
    assert paired.ratio.high - paired.ratio.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert paired == paired_bootstrap([(before, after, size)], [1.0], seed=1)
    assert paired != paired_bootstrap([(before, after, size)], [1.0], seed=2)
    doubled = paired_bootstrap([(before, after, size)] * 2, [0.5, 0.5], seed=1)
    assert doubled.difference.value == pytest.approx(paired.difference.value)
    width = paired.difference.high - paired.difference.low
    assert doubled.difference.high - doubled.difference.low == pytest.approx(width / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("documents", [2, 4])
def test_small_components_are_as_uncertain_as_they_are(documents: int) -> None:
    generator = np.random.default_rng(0)
    count = 40
    size, before = np.full(documents, 100.0), np.full(documents, 100 * math.log(2))
    after = [before * generator.normal(0.9, 0.05, documents) for _ in range(count)]
    paired = paired_bootstrap([(before, values, size) for values in after], [1 / count] * count)
    # The textbook standard error of a stratified mean, from each stratum's unbiased variance.
    variance = sum(values.var(ddof=1) / documents for values in after) / (count * 100 * math.log(2)) ** 2
    width = paired.ratio.high - paired.ratio.low
    assert width == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.04)


@pytest.mark.parametrize("documents", COVERAGE)
def test_intervals_of_few_documents_hold_the_truth_as_often_as_is_said(documents: int) -> None:
    generator = np.random.default_rng(documents)
    held, samples = 0, 600
    for _ in range(samples):
        size = generator.uniform(500, 4000, documents)
        before = size * generator.uniform(0.6, 1.4, documents)
        ratio = paired_bootstrap([(before, before * generator.normal(0.95, 0.03, documents), size)], [1.0]).ratio
        held += ratio.low <= 0.95 <= ratio.high
    assert held / samples == pytest.approx(COVERAGE[documents], abs=0.06)  # three standard errors


# Hardt & Sun (ICLR 2024), their result files: GPT-2 117M after 50 neighbors, bits per byte of each component.
PUBLISHED = {
    "Pile-CC": 1.02183, "PubMed Central": 0.89324, "Books3": 1.12981, "OpenWebText2": 1.0406, "ArXiv": 1.11321,
    "Github": 0.69068, "FreeLaw": 0.86058, "StackExchange": 1.04129, "USPTO Backgrounds": 0.73718,
    "PubMed Abstracts": 0.87387, "Gutenberg (PG-19)": 1.26811, "OpenSubtitles": 1.03923, "Wikipedia (en)": 0.9563,
    "DM Mathematics": 1.07634, "Ubuntu IRC": 1.22253, "BookCorpus2": 1.08391, "EuroParl": 1.38054,
    "HackerNews": 1.23294, "YoutubeSubtitles": 1.57631, "PhilPapers": 1.22592, "NIH ExPorter": 0.80632,
    "Enron Emails": 0.90845,
}  # fmt: skip
PUBLISHED_TOTAL = 0.99222


def test_the_piles_weights_give_the_published_total() -> None:
    weights = pile_weights([*PUBLISHED, "PEPs"])
    assert weights.keys() == PUBLISHED.keys()
    assert sum(weights[name] * value for name, value in PUBLISHED.items()) == pytest.approx(PUBLISHED_TOTAL, abs=1e-5)
    assert sum(PILE_WEIGHTS.values()) == pytest.approx(100)
    assert pile_weights(["Github", "Enron Emails"]) == pytest.approx(
        {"Github": 7.59 / 7.73, "Enron Emails": 0.14 / 7.73}
    )
    assert pile_weights(["PEPs"]) == {}
