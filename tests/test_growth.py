"""A datastore's life: append, delete and compact; ids stay what they were, and what is deleted is gone everywhere."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.encoders import tiny_embedder
from tests.test_datastore import INDEX, LAYOUTS, build, cached_embedder, contents, corpus
from tttnn.config import DatastoreConfig, IndexConfig, SelectionConfig, StoreConfig
from tttnn.datastore import compaction
from tttnn.datastore import manifest as manifests
from tttnn.datastore.build_report import BuildReport
from tttnn.datastore.estimate import estimate_build
from tttnn.errors import DatastoreLockedError, DatastoreMismatchError, IndexCorruptError
from tttnn.files import digest_of, write_manifest
from tttnn.retrieval.selector import Selector
from tttnn.store.document import Document, text_digest

QUERY = "3 moon cat sort"


def opened(path: Path) -> tttnn.Datastore:
    return tttnn.Datastore.open(path, cached_embedder(3))


def answers(datastore: tttnn.Datastore, k: int = 200, **options: Any) -> list[tuple[int, float, str]]:
    return [(n.id, n.distance, n.text) for n in datastore.search(QUERY, k, **options)]


def more(count: int = 25) -> list[Document]:
    return [Document(d.text + " appended", d.meta) for d in corpus(count, seed=9)]


@pytest.fixture(params=list(LAYOUTS))
def datastore(request: Any, tmp_path: Path) -> tttnn.Datastore:
    return build(tmp_path / "d", **LAYOUTS[request.param])


def test_appended_documents_are_found_and_ids_go_on(datastore: tttnn.Datastore) -> None:
    before = answers(datastore)
    reader = opened(datastore.path)
    old_id, old_segments = datastore.id, datastore.info()["segments"]
    assert datastore.append(more()) is datastore
    assert len(datastore) == len(datastore.store) == 85
    assert [d.text for d in datastore.store] == [d.text for d in corpus() + more()]
    assert datastore.store[60].text == more()[0].text
    assert datastore.info()["segments"] > old_segments
    assert datastore.info()["next_id"] == 85
    after = answers(datastore)
    assert sorted(i for i, *_ in after) == list(range(85))
    assert [a for a in after if a[0] < 60] == before
    assert answers(opened(datastore.path)) == after
    # A reader that was open before has the old state until it searches, and knows it when asked.
    assert reader.id == old_id != datastore.id
    with pytest.raises(DatastoreMismatchError, match="was written since this datastore was opened"):
        reader.verify()
    assert answers(reader) == after
    assert reader.id == datastore.id
    datastore.verify()


def test_the_same_appends_give_the_same_files(tmp_path: Path) -> None:
    for name in "ab":
        build(tmp_path / name, **LAYOUTS["passage segments"]).append(more()).append(more(5))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


class _Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("layout", ["document", "passage segments"])
def test_an_append_stopped_anywhere_continues_to_the_same_files(tmp_path: Path, layout: str) -> None:
    build(tmp_path / "base", **LAYOUTS[layout])
    shutil.copytree(tmp_path / "base", tmp_path / "whole", symlinks=True)
    calls: list[str] = []
    opened(tmp_path / "whole").append(more(), progress=lambda stage, *_: calls.append(stage))
    whole = contents(tmp_path / "whole")
    before = answers(opened(tmp_path / "base"))
    for stop_at in sorted({calls.index(stage) for stage in set(calls)} | {len(calls) - 1}):
        path = tmp_path / f"stopped-{stop_at}"
        shutil.copytree(tmp_path / "base", path, symlinks=True)
        seen = 0

        def stop(*_: Any, stop_at: int = stop_at) -> None:
            nonlocal seen
            seen += 1
            if seen > stop_at:
                raise _Stop

        with pytest.raises(_Stop):
            opened(path).append(more(), progress=stop)
        assert answers(opened(path)) == before  # usable meanwhile
        with pytest.raises(DatastoreLockedError, match="an append there was interrupted"):
            opened(path).compact()
        opened(path).append(more())
        assert contents(path) == whole, calls[stop_at]


def test_an_interrupted_append_takes_the_same_documents_or_is_discarded(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "embed":
            raise _Stop

    made = build(tmp_path / "d")
    whole = contents(made.path)
    with pytest.raises(_Stop):
        made.append(more(), progress=stop)
    assert made.delete([3]) == 1  # deleting goes on meanwhile
    assert made.discard_append()
    assert not made.discard_append()
    assert {name for name in contents(made.path) if "deleted" not in name} == set(whole)
    with pytest.raises(_Stop):
        made.append(more(), progress=stop)
    made.append(more())
    assert len(made) == 84
    with pytest.raises(IndexError, match="got 3, which was deleted"):
        made.store[3]


def test_an_append_killed_at_its_very_end_is_not_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr("tttnn.datastore.builder.Builder._clean_up", lambda *_: (_ for _ in ()).throw(_Stop()))
        with pytest.raises(_Stop):
            made.append(more())
    shutil.copytree(made.path, tmp_path / "copy", symlinks=True)
    made.append(more())
    assert len(made) == 85
    assert not (made.path / "build.json").exists()
    other = opened(tmp_path / "copy")
    with pytest.raises(ValueError, match=r"document 60 differs.*Append once more for other documents"):
        other.append(corpus(3, seed=77))
    other.append(corpus(3, seed=77))
    assert len(other) == 88


def test_appending_is_refused_with_another_embedder_or_nothing(tmp_path: Path) -> None:
    made = build(tmp_path / "d")
    with pytest.raises(ValueError, match="documents must hold at least one document"):
        made.append([])
    assert len(opened(tmp_path / "d")) == 60
    with pytest.raises(DatastoreMismatchError, match="was built with embedder"):
        tttnn.Datastore.open(tmp_path / "d", tiny_embedder(4))
    assert made.append(iter(["one more"])).store[60].text == "one more"


def test_two_writers(tmp_path: Path) -> None:
    made = build(tmp_path / "d")
    entered, leave = threading.Event(), threading.Event()

    def hold(stage: str, done: int, total: int | None) -> None:
        entered.set()
        assert leave.wait(30)

    first = threading.Thread(target=lambda: opened(tmp_path / "d").append(more(), progress=hold))
    first.start()
    assert entered.wait(30)
    for work in (lambda: made.append(more()), lambda: made.delete([1]), made.compact, made.discard_append):
        with pytest.raises(DatastoreLockedError, match="another builder is at work"):
            work()
    leave.set()
    first.join()
    assert len(opened(tmp_path / "d")) == 85


@pytest.mark.parametrize("backend", ["hnsw", "exact"])
def test_deleted_is_gone_from_every_answer(datastore: tttnn.Datastore, backend: str, tmp_path: Path) -> None:
    if backend == "exact":
        settings = datastore.info()["settings"]["datastore"]
        datastore = tttnn.Datastore.build(
            tmp_path / "exact",
            corpus(),
            cached_embedder(3),
            config=tttnn.DatastoreConfig(**settings),
            index=IndexConfig(backend="exact"),
        )
    before = answers(datastore)
    reader = opened(datastore.path)
    gone = {before[0][0], before[1][0], 0, 59, 31}
    assert datastore.delete(sorted(gone)) == len(gone)
    assert datastore.delete(sorted(gone)) == 0
    for now in (datastore, opened(datastore.path)):
        left = [a for a in before if a[0] not in gone]
        assert answers(now) == left
        assert [n.id for n in now.search(QUERY, 7)] == [i for i, *_ in left[:7]]
        assert len(now) == len(now.store) == len(now.search(QUERY, 60)) == 60 - len(gone)
        assert not gone & {n.id for n in now.search(QUERY, 60, source="even")}
        chosen = Selector(now, SelectionConfig(method="sift")).search(QUERY, 55)
        assert not gone & {n.id for n in chosen}
        assert [d.text for d in now.store] == [d.text for i, d in enumerate(corpus()) if i not in gone]
        assert now.store[:3] == [d for i, d in enumerate(corpus()[:3]) if i not in gone]
        for i in gone:
            with pytest.raises(IndexError, match=f"got {i}, which was deleted"):
                now.store[i]
            if now.manifest.unit == "document":
                with pytest.raises(IndexError, match=f"got {i}, which was deleted"):
                    now.vectors([5, i])
        assert now.info()["deleted"] == len(gone)
        now.verify()
    assert answers(reader) == [a for a in before if a[0] not in gone]


def test_delete_by_source_and_by_digest(datastore: tttnn.Datastore) -> None:
    assert datastore.delete(digests=[text_digest(corpus()[i].text) for i in (3, 7)] + ["0" * 32]) == 2
    assert datastore.delete(source="even") == 30
    assert datastore.info()["sources"] == ["odd"]
    assert {n.id for n in datastore.search(QUERY, 60)} == set(range(1, 60, 2)) - {3, 7}
    with pytest.raises(ValueError, match="source must be one of odd, got 'even'"):
        datastore.search(QUERY, 5, source="even")
    with pytest.raises(ValueError, match="source must be one of even, odd, got 'nowhere'"):
        datastore.delete(source="nowhere")
    for wrong in (60, -1):
        with pytest.raises(IndexError, match="document id must be between 0 and 59"):
            datastore.delete([1, wrong])
    assert len(datastore) == 28


def test_compaction_keeps_answers_and_ids(datastore: tttnn.Datastore) -> None:
    datastore.append(more())
    gone = [0, 1, 2, 20, 59, 60, 84]
    datastore.delete(gone)
    before, stored = answers(datastore), list(datastore.store)
    reader = opened(datastore.path)
    report = datastore.compact()
    assert report.removed == len(gone)
    assert report.segments_after <= report.segments_before
    for now in (datastore, opened(datastore.path), reader):
        assert answers(now) == before
        assert list(now.store) == stored
    assert datastore.info()["deleted"] == 0
    for i in gone:
        with pytest.raises(IndexError, match=f"got {i}, which was deleted"):
            datastore.store[i]
    datastore.verify()
    # No id comes back, not even that of the last document; nothing old lies about.
    datastore.append(["after compaction"])
    assert datastore.store[85].text == "after compaction"
    assert datastore.search("after compaction", 1)[0].id == 85
    names = {entry.name for entry in datastore.manifest.segments}
    assert {p.name for p in (datastore.path / "segments").iterdir()} == names
    text = datastore.store[10].text
    assert tttnn.TextStore.open(datastore.path / "texts.zst")[7].text == text
    # Again: deleted from a segment whose ids have gaps.
    datastore.delete([10, 85])
    assert datastore.compact().removed == 2
    assert {n.id for n in datastore.search(QUERY, 200)} == set(range(85)) - {*gone, 10}
    assert datastore.info()["next_id"] == 86


def test_compaction_merges_small_segments_up_to_the_limit(tmp_path: Path) -> None:
    made = build(tmp_path / "d", corpus(20), segment_documents=10)
    for _ in range(3):
        made.append(["few"] * 4)
    assert made.info()["segments"] == 5
    before = answers(made)
    assert made.compact().segments_after == 4  # 10, 10, 4 + 4, 4
    assert [entry.documents for entry in made.manifest.segments] == [10, 10, 8, 4]
    assert answers(made) == before
    untouched = contents(made.path)
    assert made.compact().removed == 0
    assert contents(made.path) == untouched


def test_all_documents_deleted(tmp_path: Path) -> None:
    made = build(tmp_path / "d", segment_documents=25)
    made.delete(range(60))
    assert made.search(QUERY, 5) == []
    made.compact()
    for now in (made, opened(made.path)):
        assert (len(now), list(now.store), now.search(QUERY, 5)) == (0, [], [])
        assert now.info()["documents"] == 0
        now.verify()
        with pytest.raises(IndexError, match="got 7, which was deleted"):
            now.store[7]
    assert made.append(["a new beginning"]).search(QUERY, 5)[0].id == 60


@pytest.mark.parametrize("step", ["train_dictionary", "_copy_vectors", "describe_segment", "replace_manifest"])
def test_an_interrupted_compaction_leaves_the_datastore(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(tmp_path / "d", **LAYOUTS["passage segments"])
    made.delete([1, 2, 50])
    before = answers(made)
    with monkeypatch.context() as patch:
        patch.setattr(compaction, step, lambda *_, **__: (_ for _ in ()).throw(_Stop()))
        with pytest.raises(_Stop):
            made.compact()
    assert answers(opened(made.path)) == before
    assert made.compact().removed == 3
    assert answers(opened(made.path)) == before
    assert len(list((made.path / "segments").iterdir())) == made.info()["segments"]


def test_an_interrupted_deletion_happened_or_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path / "d")
    made.delete([4])
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "replace_manifest", lambda *_: (_ for _ in ()).throw(_Stop()))
        with pytest.raises(_Stop):
            made.delete([5])
    assert len(opened(made.path)) == 59
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "remove_unlisted", lambda *_: (_ for _ in ()).throw(_Stop()))
        with pytest.raises(_Stop):
            made.delete([6])
    assert len(opened(made.path)) == 58
    made.delete([7])
    assert [p.name for p in (made.path / "segments" / "000").glob("deleted.*")] == ["deleted.3.bin"]


def test_opening_beside_a_writer_takes_the_new_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path / "d")
    made.delete([1])
    real = manifests.open_manifest
    read: list[str] = []

    def slow(path: Path) -> manifests.Manifest:
        manifest = real(path)
        if not read:
            read.append(manifest.id)
            compaction.compact_datastore(path)
        return manifest

    monkeypatch.setattr("tttnn.datastore.opening.open_manifest", slow)
    assert len(opened(tmp_path / "d")) == 59
    assert opened(tmp_path / "d").id != read[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "format must be at most 2, got 3. Install a newer tttnn."),
        ({"shards": 4}, "must not have a field 'shards'"),
        ({"unit": "word"}, "unit must be document or passage, got 'word'"),
        ({"unit": 7}, r"manifest\.unit: must be str, got 7"),
        ({"dim": -1}, r"manifest\.dim: must be 0 or more, got -1"),
        ({"dim": True}, r"manifest\.dim: must be int, got True"),
        ({"embedder": "minilm"}, r"manifest\.embedder: must be an object, got 'minilm'"),
        ({"segments": {}}, r"manifest\.segments: must be list, got \{\}"),
        ({"segments": [{"name": "000"}]}, r"manifest\.segments\[0\]: must have a field 'base'"),
        ({"next_id": 3}, "segment '000' must hold ids between 0 and 3, got 0 to 60"),
        ({"settings": {}}, "its datastore settings cannot be used"),
    ],
)
def test_a_manifest_of_another_kind_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    made = build(tmp_path / "d")
    fields = made.manifest.to_dict() | change
    write_manifest(made.path / "manifest.json", {**fields, "id": digest_of(fields)})
    with pytest.raises(IndexCorruptError, match=words):
        opened(made.path).compact()
    fields = made.manifest.to_dict()
    del fields["dim"]
    write_manifest(made.path / "manifest.json", {**fields, "id": digest_of(fields)})
    with pytest.raises(IndexCorruptError, match="manifest: must have a field 'dim'"):
        opened(made.path)


def test_files_of_others_in_a_datastore_stay(tmp_path: Path) -> None:
    made = build(tmp_path / "d", segment_documents=30)
    theirs = ["segments/notes.txt", "segments/backup/letter", "segments/000/deleted.letter", "segments/000/x.partial"]
    theirs += ["manifest.json.letter", "texts.zst.1"]
    for name in theirs:
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_text(name)
    shortcut = tmp_path / "d" / "texts.zst"
    shortcut.unlink()
    shortcut.write_text("a letter")
    begun = ["manifest.json.partial", "segments/000/index.json.partial", "segments/001/deleted.1.bin.3.partial"]
    for name in begun:
        (tmp_path / "d" / name).write_text("half of")
    made.append(more())
    made.delete([3])
    made.compact()
    assert [(tmp_path / "d" / name).read_text() for name in theirs] == theirs
    assert shortcut.read_text() == "a letter"
    assert not [name for name in begun if (tmp_path / "d" / name).exists()]
    opened(tmp_path / "d").verify()


def test_a_manifest_is_the_same_after_reading(tmp_path: Path) -> None:
    made = build(tmp_path / "d", **LAYOUTS["passage segments"])
    made.delete([1])
    assert opened(made.path).manifest == made.manifest
    assert made.manifest.id == digest_of(made.manifest.to_dict())
    assert json.loads((made.path / "manifest.json").read_text())["segments"][0]["deleted"]["documents"] == 1


def test_a_list_of_deleted_documents_cannot_be_lost_or_exchanged(tmp_path: Path) -> None:
    for name, gone in (("a", 3), ("b", 4)):
        build(tmp_path / name, corpus(seed=gone)).delete([gone])
    folder = tmp_path / "a" / "segments" / "000"
    whole = (folder / "deleted.1.bin").read_bytes()
    shutil.copy(tmp_path / "b" / "segments" / "000" / "deleted.1.bin", folder)
    with pytest.raises(IndexCorruptError, match=r"deleted\.1\.bin: its sha256"):
        opened(tmp_path / "a")
    os.unlink(folder / "deleted.1.bin")
    with pytest.raises(FileNotFoundError, match=r"deleted\.1\.bin"):
        opened(tmp_path / "a")
    (folder / "deleted.1.bin").write_bytes(whole)
    assert len(opened(tmp_path / "a")) == 59


def test_a_datastore_of_the_first_format_still_opens_and_grows(tmp_path: Path) -> None:
    made = build(tmp_path / "d", **LAYOUTS["segments"])
    before = answers(made)
    fields = made.manifest.to_dict()
    old = {key: v for key, v in fields.items() if key not in ("next_id", "next_segment")} | {"format": 1}
    old["segments"] = [{k: v for k, v in e.items() if k not in ("end", "deleted")} for e in old["segments"]]
    identifier = digest_of(old)
    write_manifest(made.path / "manifest.json", {**old, "id": identifier})
    again = opened(made.path)
    assert (again.id, answers(again)) == (identifier, before)
    again.delete([5])
    again.append(["new"])
    assert {i for i, *_ in answers(again)} == {*range(61)} - {5}


def test_search_explains_itself(datastore: tttnn.Datastore) -> None:
    datastore.delete([2, 3])
    found = datastore.search(
        QUERY, 5, source="odd", exclude_digests=[text_digest(datastore.store[5].text)], explain=True
    )
    plain = datastore.search(QUERY, 5, source="odd", exclude_digests=[text_digest(datastore.store[5].text)])
    assert [n.id for n in found] == [n.id for n in plain]
    explanation = found.explanation
    assert explanation is not None
    assert plain.explanation is None
    assert explanation.segments == datastore.info()["segments"]
    assert explanation.vectors == datastore.info()["vectors"]
    assert (explanation.deleted, explanation.filtered) == (2, 29)
    assert explanation.excluded in (0, 1)
    assert explanation.recall == 1.0
    assert explanation.rounds >= 1
    assert explanation.distances > 0
    assert explanation.walked + explanation.scanned >= explanation.segments
    assert set(explanation.to_dict()) >= {"ef", "recall", "distances"}


def test_ef_grows_until_k_are_found(tmp_path: Path) -> None:
    # Passages of a few long documents crowd out the others; joining leaves fewer than k at first.
    long = [" ".join(["moon cat"] * 400) + f" {i}" for i in range(3)]
    made = build(tmp_path / "d", long + [f"{i} stone" for i in range(30)], unit="passage", passage_overlap=10)
    made.delete([0])
    found = made.search("moon cat", 20, ef=1, explain=True)
    assert len({n.id for n in found}) == 20
    assert found.explanation is not None
    assert found.explanation.rounds > 1
    assert [n.id for n in found] == [n.id for n in made.search("moon cat", 20, ef=100_000)]
    assert INDEX.ef_search < 100


def test_filtered_recall(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, 16)).astype(np.float32)
    queries = rng.standard_normal((50, 16)).astype(np.float32)
    index = tttnn.NeighborIndex.build(tmp_path / "i", vectors, IndexConfig(M=8, ef_construction=60, ef_search=64))
    for share in (0.9, 0.5, 0.1, 0.01):
        where = rng.random(4000) < share
        ids, _ = index.search(queries, 10, where=where)
        best, _ = index.search(queries, 10, where=where, method="scan")
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), best.tolist(), strict=True)])
        assert where[ids].all()
        assert recall >= 0.95, share


def test_an_estimate_counts_documents_and_comes_near_the_disk(tmp_path: Path) -> None:
    documents = corpus(300)
    for layout in ("document", "passage"):
        config = tttnn.DatastoreConfig(**LAYOUTS[layout])
        guess = estimate_build(documents, cached_embedder(3), config=config, index=INDEX)
        made = build(tmp_path / layout, documents, **LAYOUTS[layout]).info()
        assert (guess.documents, guess.text_bytes) == (300, made["text_bytes"])
        assert guess.vectors == pytest.approx(made["vectors"], rel=0.1)
        assert guess.tokens == pytest.approx(made["embedded_tokens"], rel=0.1)
        assert guess.disk_bytes["index"] == pytest.approx(made["index_bytes"], rel=0.1)
        assert guess.disk_bytes["texts"] == pytest.approx(made["store_bytes"], rel=0.3)
        assert set(guess.seconds) >= {"ingest", "embed", "index"}
        assert guess.sample_documents == 150
    with pytest.raises(ValueError, match="at least one document"):
        estimate_build([], cached_embedder(3))


def test_a_build_reports_rates_and_memory(tmp_path: Path) -> None:
    report = BuildReport()
    seen: list[str] = []

    def watch(stage: str, done: int, total: int | None) -> None:
        assert (report.stages[stage].done, report.stages[stage].total) == (done, total)
        seen.append(stage)

    tttnn.Datastore.build(
        tmp_path / "d", corpus(), cached_embedder(3), config=DatastoreConfig(unit="passage"), index=INDEX,
        progress=watch, report=report,
    )  # fmt: skip
    assert list(report.stages) == ["dictionary", "ingest", "passages", "embed", "index"]
    assert set(report.stages["embed"].rates) == {"documents", "tokens", "bytes"}
    assert report.stages["ingest"].bytes == sum(len(d.text.encode()) for d in corpus())
    assert all(stage.done == stage.total for stage in report.stages.values())
    assert list(dict.fromkeys(seen)) == list(report.stages)
    assert report.peak_memory_bytes > 1 << 20
    assert set(report.to_dict()["stages"]["embed"]) >= {"seconds", "tokens_per_second"}


def test_the_dictionary_stands_for_the_whole_corpus(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Two sources one after the other, each with its own long words.
    words = [["".join(rng.choice(list("abcdefghij"), 30)) for _ in range(60)] for _ in range(2)]
    texts = [" ".join(rng.choice(words[i // 1500], 12)) for i in range(3000)]
    sizes = {}
    for name, source in (("path", texts), ("once", iter(texts))):
        config = StoreConfig(dictionary_bytes=4096)
        made = tttnn.Datastore.build(tmp_path / name, source, cached_embedder(3), index=INDEX, store=config)
        sizes[name] = made.info()["store_bytes"]
        assert [d.text for d in made.store] == texts
        assert "dictionary.partial" not in {file.name for file in (tmp_path / name).rglob("*")}
    assert sizes["path"] < 0.9 * sizes["once"]
