"""Datastore: build, open and search; interruption at every stage, two builders, damage and files that do not belong."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.encoders import tiny_embedder
from tttnn.config import DatastoreConfig, IndexConfig
from tttnn.datastore import builder as builder_module
from tttnn.errors import (
    DatastoreLockedError,
    DatastoreMismatchError,
    EmbeddingError,
    IndexCorruptError,
    StoreError,
    TttnnError,
)
from tttnn.retrieval.neighbors import Neighbor, SearchResult
from tttnn.store.document import Document, text_digest

WORDS = [
    "moon",
    "cat",
    "sort",
    "list",
    "bit",
    "near",
    "text",
    "tree",
    "river",
    "stone",
    "query",
    "model",
    "loss",
    "train",
]
INDEX = IndexConfig(M=4, ef_construction=20, ef_search=20)


def corpus(count: int = 60, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    documents = []
    for i in range(count):
        words = rng.choice(WORDS, size=int(rng.integers(1, 60)))
        documents.append(
            Document(f"{i} " + " ".join(words), {"pile_set_name": "even" if i % 2 == 0 else "odd", "n": i})
        )
    return documents


@functools.cache
def cached_embedder(seed: int) -> tttnn.Embedder:
    return tiny_embedder(seed)


def build(
    path: Path, documents: Any = None, *, seed: int = 3, progress: Any = None, **settings: Any
) -> tttnn.Datastore:
    return tttnn.Datastore.build(
        path,
        corpus() if documents is None else documents,
        cached_embedder(seed),
        config=DatastoreConfig(**settings),
        index=INDEX,
        progress=progress,
    )


def contents(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


LAYOUTS: dict[str, dict[str, Any]] = {
    "document": {},
    "segments": {"segment_documents": 17},
    "passage": {"unit": "passage", "passage_overlap": 10},
    "passage segments": {"unit": "passage", "passage_overlap": 10, "segment_documents": 17},
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def datastore(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tttnn.Datastore]:
    with build(tmp_path_factory.mktemp("datastore") / "d", **LAYOUTS[request.param]) as made:
        yield made


def test_documents_come_back_in_order(datastore: tttnn.Datastore) -> None:
    documents = corpus()
    assert len(datastore) == len(datastore.store) == 60
    assert [d.text for d in datastore.store] == [d.text for d in documents]
    assert datastore.store[-1].meta == documents[-1].meta
    assert [d.text for d in datastore.store[16:19]] == [d.text for d in documents[16:19]]
    with pytest.raises(IndexError):
        datastore.store[60]


def test_search_is_exact_search_on_the_vectors(datastore: tttnn.Datastore) -> None:
    embedder = datastore.embedder
    found = datastore.search("3 moon cat sort", 7)
    assert [n.distance for n in found] == sorted(n.distance for n in found)
    assert len({n.id for n in found}) == 7 == found.requested
    assert set(found.seconds) == {"embed", "search", "read"}
    query = embedder.embed(["3 moon cat sort"])[0]
    for neighbor in found:
        document = corpus()[neighbor.id]
        assert (neighbor.text, neighbor.meta, neighbor.source) == (document.text, document.meta, document.source)
        assert neighbor.digest == text_digest(document.text)
        text = document.text
        if neighbor.span is not None:
            text = text.encode()[slice(*neighbor.span)].decode()
        distance = float(((embedder.embed([text])[0] - query) ** 2).sum())
        assert neighbor.distance == pytest.approx(distance, abs=1e-5)
    if datastore.info()["unit"] == "document":
        every = embedder.embed([d.text for d in corpus()])
        order = np.argsort(((every - query) ** 2).sum(1), kind="stable")[:7]
        assert [n.id for n in found] == order.tolist()
        np.testing.assert_allclose(datastore.vectors([5, 59, 0]), every[[5, 59, 0]], atol=1e-5)


def test_a_document_is_nearest_to_itself(datastore: tttnn.Datastore) -> None:
    for i in (0, 20, 59):
        text = corpus()[i].text[:40]
        if len(corpus()[i].text) <= 40:
            assert datastore.search(text, 1)[0].id == i


def test_k_counts_documents_and_stops_at_the_corpus(datastore: tttnn.Datastore) -> None:
    for k in (59, 60, 61, 1000):
        found = datastore.search("graph of a tree", k)
        assert sorted(n.id for n in found) == sorted({n.id for n in found})
        assert len(found) == min(k, 60)
        assert found.requested == k


def test_source_filter(datastore: tttnn.Datastore) -> None:
    found = datastore.search("river stone", 40, source="odd")
    assert len(found) == 30
    assert {n.source for n in found} == {"odd"}
    assert len(datastore.search("river stone", 40, source=["odd", "even"])) == 40
    assert datastore.search("river stone", 40, where={"source": ["odd"]}) == found
    mixed = [n.id for n in datastore.search("river stone", 60) if n.source == "odd"]
    assert [n.id for n in found] == mixed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "nowhere"}, ValueError, "source must be one of even, odd, got 'nowhere'"),
        ({"source": ["odd", "evn"]}, ValueError, "source must be one of even and 1 more, got 'evn'"),
        ({"where": {"source": ["Odd"]}}, ValueError, "got 'Odd'"),
        ({"where": {"language": "python"}}, ValueError, "where must filter by source or fraction, got 'language'"),
        ({"where": ["odd"]}, TypeError, "where must be a mapping like .*, got list"),
        ({"where": {"source": 3}}, TypeError, "source must be a name or a list of names, got 3"),
        ({"source": []}, ValueError, "source must name at least one, got none"),
        ({"source": "odd", "where": {"source": "odd"}}, ValueError, "source must not be given beside where"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(
    datastore: tttnn.Datastore, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        datastore.search("river stone", 5, **options)


def test_an_answer_is_a_frozen_sequence_of_its_own(datastore: tttnn.Datastore) -> None:
    found = datastore.search("river stone", 4, explain=True)
    first, *_ = found
    assert found[0] is first
    assert found[1:3] == list(found)[1:3]
    for same in (list(found), tuple(found), datastore.search("river stone", 4)):
        assert found == same
    assert found != found[:3]
    with pytest.raises(FrozenInstanceError):
        found.requested = 9
    fewer = found.replace(neighbors=found.neighbors[:2], requested=2)
    assert (len(fewer), len(found), fewer.seconds) == (2, 4, found.seconds)
    assert pickle.loads(pickle.dumps(found)) == found
    plain = json.loads(json.dumps(found.to_dict()))
    assert [row["id"] for row in plain["neighbors"]] == [n.id for n in found]
    assert plain["neighbors"][0]["text"] == first.text
    assert plain["explanation"]["segments"] == len(datastore.manifest.segments)


def test_what_a_notebook_shows_is_short_and_escaped() -> None:
    text = "<script>alert('neighbor')</script>" * 40
    neighbor = Neighbor(3, 0.123456, text, source="<b>")
    found = SearchResult((neighbor,) * 12, {"embed": 0.0015}, requested=20)
    assert repr(neighbor) == f"Neighbor(id=3, distance=0.1235, source='<b>', text={text[:60]!r}... (1,360 characters))"
    assert repr(Neighbor(0, 1.0, "short")) == "Neighbor(id=0, distance=1.0000, text='short')"
    assert len(repr(found)) < 2000
    assert repr(found).startswith("SearchResult(12 of 20 neighbors: [")
    assert "... 2 more," in repr(found)
    assert repr(SearchResult()) == "SearchResult(0 of 0 neighbors: [])"
    page = found._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page
    assert page.count("<tr>") == 13
    assert "12 of 20 neighbors, 1.5 ms" in page


def test_excluded_digests_make_room(datastore: tttnn.Datastore) -> None:
    every = datastore.search("light query", 8)
    without = datastore.search("light query", 6, exclude_digests=[every[0].digest, every[2].digest])
    assert [n.id for n in without] == [n.id for i, n in enumerate(every) if i not in (0, 2)]


def test_the_answer_does_not_depend_on_other_queries(datastore: tttnn.Datastore) -> None:
    queries = ["moon", "a much longer query with many words in it " * 4, "cat"]
    together = datastore.search_many(queries, 5)
    for query, found in zip(queries, together, strict=True):
        alone = datastore.search(query, 5)
        assert [(n.id, n.distance) for n in alone] == [(n.id, n.distance) for n in found]
    assert [r.query_truncated for r in together] == [False, True, False]
    assert [r.query_tokens for r in together] == [6, 64, 5]


def test_bad_queries_are_refused(datastore: tttnn.Datastore) -> None:
    for query in ("", " \n"):
        with pytest.raises(ValueError, match="query must hold some text"):
            datastore.search(query, 3)
    for k in (0, -1):
        with pytest.raises(ValueError, match="k must be at least 1"):
            datastore.search("moon", k)


def test_info_and_verify(datastore: tttnn.Datastore) -> None:
    info = datastore.info()
    assert info["documents"] == 60
    assert info["sources"] == ["even", "odd"]
    assert info["text_bytes"] == sum(len(d.text.encode()) for d in corpus())
    assert info["recall_at_20"] > 0.9
    vectors = info["vectors"] * info["dim"] * 4
    assert vectors < info["memory"]["mapped_for_search_bytes"] < info["index_bytes"] + 1
    assert 0 < info["memory"]["held_bytes"] < vectors
    assert json.loads(json.dumps(info)) == info
    seen: list[int] = []
    datastore.verify(progress=lambda _, done, total: seen.append(done))
    assert seen[-1] == 60
    datastore.verify(full=False)


def test_the_store_opens_under_its_short_name(datastore: tttnn.Datastore) -> None:
    with tttnn.TextStore.open(datastore.path / "texts.zst") as store:
        assert store[0].text == corpus()[0].text
    assert not os.path.isabs(os.readlink(datastore.path / "texts.zst"))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_same_build_gives_the_same_files(tmp_path: Path, layout: str) -> None:
    a, b = (build(tmp_path / name, **LAYOUTS[layout]) for name in "ab")
    assert a.id == b.id
    assert contents(a.path) == contents(b.path)
    assert {name for name in contents(a.path) if name.endswith((".partial", "build.json", "embedded.json"))} == set()


def test_documents_may_be_texts_a_function_or_a_path(tmp_path: Path) -> None:
    texts = [d.text for d in corpus(9)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ids = {
        build(tmp_path / str(i), documents).id
        for i, documents in enumerate([texts, lambda: iter(texts), tmp_path / "c.jsonl", iter(texts)])
    }
    assert len(ids) == 1
    with pytest.raises(TypeError, match="document 1 must be a Document or str, got int"):
        build(tmp_path / "bad", ["a", 3])


def test_unusual_documents(tmp_path: Path) -> None:
    texts = ["", "\0", " ", "🐍" * 100, "a" * 1_500_000, "moon cat", "moon cat", "moon cat", "\r\n"]
    for unit in ("document", "passage"):
        made = build(tmp_path / unit, texts if unit == "document" else texts[:4], unit=unit)
        assert [d.text for d in made.store] == texts[: len(made)]
    info = tttnn.Datastore.open(tmp_path / "document").info()
    assert (info["empty"], info["truncated"]) == (1, 2)
    found = tttnn.Datastore.open(tmp_path / "document", tiny_embedder()).search("moon cat", 4)
    assert sorted(n.id for n in found[:3]) == [5, 6, 7]
    assert [n.distance for n in found[:3]] == [pytest.approx(0, abs=1e-9)] * 3
    only = tttnn.Datastore.open(tmp_path / "document", tiny_embedder()).search(
        "moon cat", 6, exclude_digests=[text_digest("moon cat")]
    )
    assert sorted(n.id for n in only) == [0, 1, 2, 3, 4, 8]


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="documents must hold at least one document"):
        build(tmp_path / "d", [])
    with pytest.raises(FileNotFoundError):
        tttnn.Datastore.open(tmp_path / "d")
    assert len(build(tmp_path / "d", ["now there is one"])) == 1


def test_missing_and_foreign_directories(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: is not a datastore"):
        tttnn.Datastore.open(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileNotFoundError, match="mine: is not a datastore"):
        tttnn.Datastore.open(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="is not a datastore"):
        build(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    build(tmp_path / "d")
    with pytest.raises(FileExistsError, match="holds a datastore already"):
        build(tmp_path / "d")


def test_another_embedder_is_refused_by_name(tmp_path: Path) -> None:
    build(tmp_path / "d")
    with pytest.raises(DatastoreMismatchError, match=r"built with embedder 'tiny-3', got 'tiny-4': weights is"):
        tttnn.Datastore.open(tmp_path / "d", tiny_embedder(4))
    opened = tttnn.Datastore.open(tmp_path / "d")
    assert opened.embedder_name == "tiny-3"
    assert opened.embed_config.max_length == 64
    assert tiny_embedder(**opened.embed_config.to_dict()).identity == tiny_embedder().identity


def test_two_builders(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(stage: str, done: int, total: int | None) -> None:
        entered.set()
        assert leave.wait(30)

    first = threading.Thread(target=lambda: build(tmp_path / "d", progress=hold))
    first.start()
    assert entered.wait(30)
    with pytest.raises(DatastoreLockedError, match="another builder is at work"):
        build(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="its build was not finished"):
        tttnn.Datastore.open(tmp_path / "d")
    leave.set()
    first.join()
    assert len(tttnn.Datastore.open(tmp_path / "d")) == 60


class _Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_build_stopped_anywhere_continues_to_the_same_files(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tttnn.datastore.vector_source.GROUP", 16)
    monkeypatch.setattr("tttnn.datastore.graph_building._REPORT", 8)
    whole = contents(build(tmp_path / "whole", **LAYOUTS[layout]).path)
    calls: list[str] = []
    build(tmp_path / "count", progress=lambda stage, *_: calls.append(stage), **LAYOUTS[layout])
    assert {"ingest", "embed", "index"} <= set(calls)
    # The first and second call of each stage, and some between.
    firsts = {calls.index(stage) + more for stage in set(calls) for more in (0, 1)}
    for stop_at in sorted(firsts | set(range(2, len(calls), 9))):
        if stop_at >= len(calls):
            continue
        path = tmp_path / f"stopped-{stop_at}"
        seen = 0

        def stop(*_: Any, stop_at: int = stop_at) -> None:
            nonlocal seen
            seen += 1
            if seen > stop_at:
                raise _Stop

        with pytest.raises(_Stop):
            build(path, progress=stop, **LAYOUTS[layout])
        with pytest.raises(FileNotFoundError):
            tttnn.Datastore.open(path)
        build(path, **LAYOUTS[layout])
        assert contents(path) == whole, calls[stop_at]


def test_a_stopped_build_continues_with_the_same_settings_and_corpus_only(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "ingest" and done > 20:
            raise _Stop

    with pytest.raises(_Stop):
        build(tmp_path / "d", segment_documents=17, progress=stop)
    with pytest.raises(DatastoreMismatchError, match=r"other settings \(datastore\)"):
        build(tmp_path / "d", segment_documents=18)
    with pytest.raises(DatastoreMismatchError, match=r"other settings \(embedder\)"):
        build(tmp_path / "d", segment_documents=17, seed=4)
    with pytest.raises(ValueError, match="document 0 differs"):
        build(tmp_path / "d", corpus(seed=1), segment_documents=17)
    assert len(build(tmp_path / "d", segment_documents=17)) == 60


def test_an_embedding_that_is_not_finite_names_the_document(tmp_path: Path) -> None:
    embedder = tiny_embedder()
    embedder.model.embeddings.word_embeddings.weight[ord("7") - ord("!")] = 1e30  # its square is infinite
    with pytest.raises(EmbeddingError, match="document 7: its embedding"):
        tttnn.Datastore.build(tmp_path / "d", corpus(), embedder, index=INDEX)


def _build_slowly(path: str) -> None:
    build(Path(path), corpus(300), progress=lambda *_: None, segment_documents=90)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    expected = contents(build(tmp_path / "whole", corpus(300), segment_documents=90).path)
    rng = np.random.default_rng(0)
    path = tmp_path / "d"
    killed = 0
    for _ in range(20):
        process = context.Process(target=_build_slowly, args=(str(path),))
        process.start()
        process.join(timeout=float(rng.uniform(0.05, 1.0)))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        if (path / "manifest.json").exists() and not (path / "build.json").exists():
            assert contents(path) == expected
            shutil.rmtree(path)
    if path.exists():
        build(path, corpus(300), segment_documents=90)
        assert contents(path) == expected
    assert killed > 0


def _build_until(path: str, append: bool, stage: str, call: int) -> None:
    """Build or append, and die by SIGKILL inside the n-th report of a stage."""
    seen = 0

    def strike(now: str, done: int, total: int | None) -> None:
        nonlocal seen
        seen += now == stage
        if now == stage and seen == call:
            os.kill(os.getpid(), signal.SIGKILL)

    if append:
        tttnn.Datastore.open(path, cached_embedder(3)).append(corpus(300, seed=2), progress=strike)
    else:
        build(Path(path), corpus(300), progress=strike, segment_documents=90, **LAYOUTS["passage"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("append", [False, True])
def test_killed_once_inside_each_stage(tmp_path: Path, append: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tttnn.datastore.vector_source.GROUP", 64)
    monkeypatch.setattr(builder_module, "_CUT_DOCUMENTS", 32)
    monkeypatch.setattr(builder_module, "_REPORT_DOCUMENTS", 32)
    monkeypatch.setattr("tttnn.datastore.graph_building._REPORT", 64)
    settings = {**LAYOUTS["passage"], "segment_documents": 90}
    whole, path = tmp_path / "whole", tmp_path / "d"
    made = build(whole, corpus(300), **settings)
    calls: list[str] = []
    if append:
        shutil.copytree(whole, path, symlinks=True)
        made.append(corpus(300, seed=2), progress=lambda stage, *_: calls.append(stage))
    else:
        build(tmp_path / "count", corpus(300), progress=lambda stage, *_: calls.append(stage), **settings)
    expected = contents(whole)
    context = multiprocessing.get_context("fork")
    rng = np.random.default_rng(1)
    for stage in dict.fromkeys(calls):
        assert calls.count(stage) > 2
        call = int(rng.integers(1, calls.count(stage)))
        process = context.Process(target=_build_until, args=(str(path), append, stage, call))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, stage
        assert contents(path) != expected
    if append:
        tttnn.Datastore.open(path, cached_embedder(3)).append(corpus(300, seed=2))
    else:
        build(path, corpus(300), **settings)
    assert contents(path) == expected


def _answers(datastore: tttnn.Datastore) -> list[tuple[int, float, str]]:
    return [(n.id, n.distance, n.text) for n in datastore.search("3 moon cat sort", 60)]


@pytest.mark.parametrize("layout", ["document", "passage segments"])
def test_damage_anywhere_is_named(tmp_path: Path, layout: str) -> None:
    made = build(tmp_path / "d", **LAYOUTS[layout])
    expected = _answers(made)
    made.close()
    embedder = tiny_embedder()
    rng = np.random.default_rng(0)
    named = total = 0
    files = [path for path in sorted((tmp_path / "d").rglob("*")) if path.is_file() and not path.is_symlink()]
    for path in files:
        whole = path.read_bytes()
        if not whole:
            continue
        places = rng.integers(0, len(whole), size=25).tolist()
        spoils = [whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(0, 8)))]) + whole[at + 1 :] for at in places]
        spoils += [whole[: len(whole) // 2], whole[:-1], b"", whole + b"\0"]
        total += len(spoils)
        for spoiled in spoils:
            path.write_bytes(spoiled)
            try:
                with tttnn.Datastore.open(tmp_path / "d", embedder) as opened:
                    opened.verify()
                    assert _answers(opened) == expected
            except (IndexCorruptError, StoreError, DatastoreMismatchError) as error:
                named += path.name in str(error)
        path.write_bytes(whole)
        os.rename(path, tmp_path / "away")
        with pytest.raises((FileNotFoundError, TttnnError), match=path.name):
            tttnn.Datastore.open(tmp_path / "d", embedder)
        os.rename(tmp_path / "away", path)
    assert named == total
    assert _answers(tttnn.Datastore.open(tmp_path / "d", embedder)) == expected


@pytest.mark.parametrize("name", ["texts.zst", "vectors.hnsw", "index.json", "passages.bin", "../../manifest.json"])
def test_files_of_another_datastore_are_refused(tmp_path: Path, name: str) -> None:
    settings = LAYOUTS["passage"]
    build(tmp_path / "a", **settings)
    build(tmp_path / "b", corpus(seed=1), **settings)
    folder = "segments/000"
    shutil.copy(tmp_path / "b" / folder / name, tmp_path / "a" / folder / name)
    with pytest.raises(TttnnError, match=r"segments/000/|manifest\.json"):
        tttnn.Datastore.open(tmp_path / "a")


def test_a_closed_datastore_says_so(tmp_path: Path) -> None:
    made = build(tmp_path / "d")
    made.close()
    with pytest.raises(ValueError, match="closed"):
        made.search("moon", 2)


def test_what_a_store_cannot_keep_is_refused_by_document(tmp_path: Path) -> None:
    embedder = tiny_embedder()
    made = tttnn.Datastore.build(tmp_path / "d", ["one", "two"], embedder)
    for documents, words in (
        (["fine", "half \ud83d"], r"document 1: its text: character 5 is a lone surrogate, U\+D83D"),
        ([Document("fine", {"a": [float("inf")]})], "document 0: field .* must be finite, got inf"),
    ):
        with pytest.raises(ValueError, match=words):
            tttnn.Datastore.build(tmp_path / "other", documents, embedder)
        with pytest.raises(ValueError, match=words):
            made.append(documents)
        made.discard_append()
    assert len(made) == 2


def test_what_is_searched_with_is_checked(tmp_path: Path) -> None:
    made = tttnn.Datastore.build(tmp_path / "d", ["one", "two"], tiny_embedder())
    for query in (None, b"one", ["one"], 3):
        with pytest.raises(TypeError, match="query must be a text, got"):
            made.search(query, 1)
    for k in (1.0, "1", None):
        with pytest.raises(TypeError, match="k must be a whole number, got"):
            made.search("one", k)
    assert [n.id for n in made.search("one", np.int64(2))] == [n.id for n in made.search("one", 2)]
