"""What is gained over the size of the index: the method against smaller datastores, the law against plain numpy."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.conftest import TEXTS, assert_same_state, state_of, tiny_gpt2
from tests.encoders import tiny_embedder
from tests.json_shapes import differences, read_shapes
from tests.test_cli import run
from tests.test_workers import saved_recipe
from tttnn.config import EvalConfig
from tttnn.evaluation.bootstrap import RESAMPLES
from tttnn.evaluation.records import Line, Measured, Point
from tttnn.evaluation.result_file import ResultFile, read_results
from tttnn.evaluation.results import ALL, PILE_ALL, EvalResult
from tttnn.evaluation.runner import evaluate
from tttnn.evaluation.size_law import SizeLaw, size_laws
from tttnn.report.page import write_report
from tttnn.retrieval.where import Where
from tttnn.store.document import Document

DOCUMENT = Document("What is asked of a document is that it be long enough to be cut in half. " * 2)
CORPUS = [f"{TEXTS[i % len(TEXTS)]} number {i}" for i in range(30)]
FRACTIONS = (0.05, 0.3, 1.0)
CONFIG = EvalConfig(query_tokens=60, scored_tokens=60, curve=(0, 1, 3), index_fractions=FRACTIONS, index_seed=1)
DOCS_JSON = Path(__file__).resolve().parents[1] / "docs" / "json.md"


def trainer_of(corpus: list[str], folder: Path, tokenizer: Any) -> tttnn.TestTimeTrainer:
    config = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32")
    index = tttnn.IndexConfig(backend="exact")
    datastore = tttnn.Datastore.build(folder, corpus, tiny_embedder(), index=index)
    return tttnn.TestTimeTrainer(tiny_gpt2(n_positions=256), tokenizer, datastore, config)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[tttnn.TestTimeTrainer]:
    made = trainer_of(CORPUS, tmp_path_factory.mktemp("index-size") / "store", tokenizer)
    yield made
    made.release()


def test_each_share_trains_as_a_datastore_of_its_documents_alone(trainer: Any, tmp_path: Path, tokenizer: Any) -> None:
    before = state_of(trainer.model)
    result = evaluate(trainer, [DOCUMENT], config=CONFIG, methods=["ttt-nn", "index-size"])
    assert_same_state(trainer.model, before)
    line, whole = result.of("index-size")[0], result.of("ttt-nn")[0]
    base = result.of("base")[0].at().nats
    assert [point.k for point in line.points] == [0, 1, 3]
    assert set(line.at(0).extra["fractions"].values()) == {base}
    used = {neighbor.id for neighbor in whole.neighbors}
    for fraction in FRACTIONS:
        held = np.flatnonzero(Where(fraction=fraction, seed=1).drawn(np.arange(len(CORPUS)))).tolist()
        part = trainer_of([CORPUS[i] for i in held], tmp_path / f"{fraction}", tokenizer)
        alone = evaluate(part, [DOCUMENT], config=CONFIG, methods=["ttt-nn"]).of("ttt-nn")[0]
        part.release()
        used |= {held[neighbor.id] for neighbor in alone.neighbors}
        for k in (1, 3):
            extra = line.at(k).extra
            assert extra["fractions"][f"{fraction:g}"] == alone.at(k).nats
            assert extra["found"][f"{fraction:g}"] == min(k, len(held))
    assert {neighbor.id for neighbor in line.neighbors} == used
    assert [point.nats for point in line.points] == [point.nats for point in whole.points]
    assert result.settings["methods"]["index-size"]["index_documents"] == len(CORPUS)


def test_a_share_without_documents_is_the_base_model(trainer: Any) -> None:
    config = CONFIG.with_(index_fractions=(1e-6,))
    result = evaluate(trainer, [DOCUMENT], config=config, methods=["index-size"])
    point = result.of("index-size")[0].at()
    assert point.extra == {"fractions": {"1e-06": result.of("base")[0].at().nats}, "found": {"1e-06": 0}}
    law = size_laws(result)[-1]
    assert (law.points[0].ratio.value, law.points[0].found, law.slope) == (1.0, 0.0, None)


def test_what_holds_scored_text_is_left_out_in_every_share(trainer: Any) -> None:
    copies = {i for i in range(len(CORPUS)) if i % len(TEXTS) == 4}
    document = Document(TEXTS[4] * 2)
    for limit, kept in ((None, True), (0.05, False)):
        result = evaluate(trainer, [document], config=CONFIG.with_(max_overlap=limit), methods=["index-size"])
        line = result.of("index-size")[0]
        assert bool({neighbor.id for neighbor in line.neighbors} & copies) == kept
        for fraction in FRACTIONS:
            held = np.flatnonzero(Where(fraction=fraction, seed=1).drawn(np.arange(len(CORPUS)))).tolist()
            allowed = held if kept else set(held) - copies
            assert line.at().extra["found"][f"{fraction:g}"] == min(3, len(allowed))


def test_an_interrupted_run_ends_in_the_same_file(trainer: Any, tmp_path: Path) -> None:
    documents = [DOCUMENT, Document(DOCUMENT.text.upper()), Document(DOCUMENT.text.title())]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    evaluate(trainer, documents, out=one, config=CONFIG, methods=["index-size"])

    def interrupt(_: str, done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(trainer, documents, out=two, config=CONFIG, methods=["index-size"], progress=interrupt)
    assert 0 < two.stat().st_size < one.stat().st_size
    evaluate(trainer, documents, out=two, config=CONFIG, methods=["index-size"])
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(tttnn.ConfigError, match=r"index_seed = 1 \(now 2\)"):
        evaluate(trainer, documents, out=two, config=CONFIG.with_(index_seed=2), methods=["index-size"])


def test_shares_that_are_none_are_refused(trainer: Any) -> None:
    for fractions in ((0.0, 1.0), (0.5, 1.5)):
        with pytest.raises(tttnn.ConfigError, match=r"^index_fractions must be between"):
            CONFIG.with_(index_fractions=fractions)
    with pytest.raises(tttnn.ConfigError, match=r"^index_fractions must name at least one share"):
        evaluate(trainer, [DOCUMENT], config=CONFIG.with_(index_fractions=()), methods=["index-size"])


def line_of(document: int, group: str, method: str, size: int, points: list[Point]) -> Line:
    return Line(document, f"{document:032x}", group, method, "split", 9, size, 9, 9, 9, 5, "neighbors", points, [])


def made_up(path: Path, groups: dict[str, int], slope: float, noise: float) -> EvalResult:
    """Write results whose ratio falls by `slope` per tenfold; return them as they are read."""
    generator = np.random.default_rng(3)
    names = ["0.01", "0.1", "0.5", "1"]
    settings = {
        "protocol": "split",
        "methods": {"base": {}, "index-size": {"index_documents": 2000}},
        "model": {"name": "tiny"},
    }
    file = ResultFile(path, settings)
    document = 0
    for group, count in groups.items():
        for _ in range(count):
            size, base = int(generator.integers(500, 4000)), float(generator.uniform(400, 2000))
            gains = {n: 0.95 + slope * math.log10(float(n)) + noise * float(generator.normal()) for n in names}
            nats = {name: base * gain for name, gain in gains.items()}
            extra = {"fractions": nats, "found": dict(zip(names, (2, 5, 5, 5), strict=True))}
            lines = [
                line_of(document, group, "base", size, [Point(0, base, None, 0, 0, 0)]),
                line_of(document, group, "index-size", size, [Point(5, nats["1"], None, 5, 99, 0, extra)]),
            ]
            file.append(Measured(None, lines, [], []))
            document += 1
    file.close()
    return read_results(path)


@pytest.fixture(scope="module")
def laws(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvalResult, dict[str, SizeLaw]]:
    path = tmp_path_factory.mktemp("laws") / "results.jsonl"
    result = made_up(path, {"Github": 12, "ArXiv": 9, "own": 5}, slope=-0.02, noise=0.004)
    return path, result, {law.group: law for law in size_laws(result)}


def test_the_law_is_a_line_through_ratios(laws: Any) -> None:
    _, result, by_group = laws
    assert list(by_group) == ["ArXiv", "Github", "own", ALL, PILE_ALL]
    base, lines = result.of("base"), result.of("index-size")
    for group in ("ArXiv", "Github", "own", ALL):
        law = by_group[group]
        documents = [d for d, line in lines.items() if group in (line.group, ALL)]
        before = np.array([base[d].at().nats for d in documents])
        after = np.array([list(lines[d].at().extra["fractions"].values()) for d in documents])
        ratios = after.sum(0) / before.sum()
        assert [point.ratio.value for point in law.points] == pytest.approx(ratios.tolist())
        slope, middle = np.polyfit([-2, -1, math.log10(0.5), 0], ratios, 1)
        assert law.slope is not None
        assert law.slope.value == pytest.approx(slope)
        assert [law.fitted(f) for f in (0.01, 1.0)] == pytest.approx([middle - 2 * slope, middle])
        # Each resample's line by itself, of the documents that the points' intervals are drawn from.
        draws = np.random.default_rng(0).integers(len(documents), size=(RESAMPLES, len(documents)))
        sizes = np.array([lines[d].num_bytes for d in documents], float)
        drawn = [
            (after[rows].sum(0) / sizes[rows].sum()) / (before[rows].sum() / sizes[rows].sum()) for rows in draws[:400]
        ]
        slopes = [np.polyfit([-2, -1, math.log10(0.5), 0], one, 1)[0] for one in drawn]
        low, high = np.quantile(slopes, [0.025, 0.975])
        assert (law.slope.low, law.slope.high) == pytest.approx((low, high), abs=0.25 * (high - low))
        assert law.slope.value == pytest.approx(-0.02, abs=0.004)
        assert [point.index_documents for point in law.points] == [20, 200, 1000, 2000]
        assert [point.found for point in law.points] == [2, 5, 5, 5]
    pile = by_group[PILE_ALL]
    assert pile.documents == 21
    assert pile.points[-1].ratio == result.summary().total(5, method="index-size", group=PILE_ALL).ratio
    assert by_group[ALL].points[-1].ratio == result.summary().total(5, method="index-size").ratio


def test_where_nothing_is_to_be_had_the_slope_is_none(tmp_path: Path) -> None:
    flat = size_laws(made_up(tmp_path / "flat.jsonl", {"a": 20}, slope=0.0, noise=0.01))[0]
    assert flat.slope is not None
    assert flat.slope.low < 0 < flat.slope.high
    assert size_laws(EvalResult({"methods": {}}, [line_of(0, "a", "base", 9, [Point(0, 1.0, None, 0, 0, 0)])])) == []


def test_the_report_shows_it(laws: Any, tmp_path: Path) -> None:
    path, _, by_group = laws
    report = write_report([path], tmp_path / "page.html")
    page = report.page.read_text(encoding="utf-8")
    assert '<figure id="index-size-split">' in page
    assert "Size of the index" in page
    assert "2,000 documents" in page
    assert (tmp_path / "page_files" / "index-size-split.png").stat().st_size > 5000
    with open(tmp_path / "page_files" / "index-size-split.csv", encoding="utf-8", newline="") as file:
        rows = {(row["group"], row["fraction"]): row for row in csv.DictReader(file)}
    assert len(rows) == 5 * 4
    for (group, fraction), row in rows.items():
        law = by_group[group]
        point = next(point for point in law.points if point.fraction == float(fraction))
        assert law.slope is not None
        assert float(row["ratio"]) == point.ratio.value
        assert (float(row["slope_low"]), float(row["slope_high"])) == (law.slope.low, law.slope.high)


def test_eval_prints_it(tmp_path: Path, tokenizer: Any, monkeypatch: Any, capsys: Any) -> None:
    recipe = saved_recipe(tmp_path, tokenizer)
    documents = tmp_path / "documents.jsonl"
    rows = [{"text": f"{TEXTS[i]} {i} " * 4, "meta": {"pile_set_name": "Github"}} for i in range(3)]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["eval", recipe.datastore, str(documents), "--model", recipe.model, "--out", str(tmp_path / "out")]
    arguments += ["--num-neighbors", "2", "--curve", "0,2", "--query-tokens", "60", "--scored-tokens", "60"]
    arguments += ["--methods", "index-size", "--index-fractions", "0.2,1"]
    assert run(monkeypatch, *arguments, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    shapes = read_shapes(DOCS_JSON)
    assert differences(shown, shapes["eval"], shapes) == []
    assert [law["group"] for law in shown["index_size"]] == ["Github", "all", "pile_all"]
    assert [point["fraction"] for point in shown["index_size"][0]["points"]] == [0.2, 1]
    assert [point["index_documents"] for point in shown["index_size"][0]["points"]] == [4, 20]
    assert run(monkeypatch, *arguments, "--weighting", "bytes") == 0
    told = capsys.readouterr().out
    assert "index-size with 2 neighbors: ratio to base [95 % interval] by share of the datastore" in told
    assert "slope per tenfold" in told
    assert "\npile_all " not in told
