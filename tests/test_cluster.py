"""A cluster in one process: as one datastore bit for bit, and every answer says what it lacks."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tttnn
from tests.clusters import CUTS, ROWS, FakeCarrier, build, build_cluster, build_whole, rows_of
from tests.encoders import save_encoder, tiny_embedder
from tests.test_workers import saved_recipe
from tttnn.cli.program import app
from tttnn.cluster import shard_build
from tttnn.cluster.build_plan import BuildPlan
from tttnn.cluster.document_id import MOST_SHARDS, DocumentId
from tttnn.cluster.gathering import ReplicaLostError, gather
from tttnn.cluster.manifest import add_shards, open_cluster, replace_shard
from tttnn.config import ClusterConfig, CorpusConfig
from tttnn.errors import ClusterError, ConfigError, DatastoreMismatchError, IndexCorruptError
from tttnn.evaluation.runner import evaluate
from tttnn.recipe import TrainerRecipe

QUERIES = ("moon cat sort", "moon 1 cat", "zzz")
PARTIAL = ClusterConfig(on_missing_shard="partial")


@pytest.fixture(scope="module")
def embedder() -> tttnn.Embedder:
    return tiny_embedder()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, embedder: tttnn.Embedder) -> Path:
    """A cluster of three exact shards, and the whole; never changed."""
    folder = tmp_path_factory.mktemp("cluster")
    build_whole(folder, embedder).close()
    build_cluster(folder, embedder)
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    """A copy of that cluster."""
    names = [f"shard-{i}" for i in range(len(CUTS) - 1)]
    for name in names:
        shutil.copytree(built / name, tmp_path / name, symlinks=True)
    add_shards(tmp_path / "cluster", [tmp_path / name for name in names])
    return tmp_path / "cluster"


@pytest.fixture
def whole(built: Path, embedder: tttnn.Embedder) -> Iterator[tttnn.Datastore]:
    with tttnn.Datastore.open(built / "whole", embedder) as opened:
        yield opened


@pytest.mark.parametrize("unit", ["document", "passage"])
def test_exact_shards_answer_as_one_datastore_bit_for_bit(tmp_path: Path, embedder: Any, unit: str) -> None:
    whole = build_whole(tmp_path, embedder, unit=unit)
    with tttnn.ClusterDatastore.open(build_cluster(tmp_path, embedder, unit=unit), embedder) as cluster:
        for query in QUERIES:
            for k in (1, 7, len(ROWS), 100):
                found = cluster.search(query, k)
                assert rows_of(found) == rows_of(whole.search(query, k)), (query, k)
                assert found.coverage is not None
                assert found.coverage.full
        twin = whole.search("moon 1 cat", 1)[0].digest
        for k in (3, 60):
            left, right = (s.search("moon 1 cat", k, exclude_digests=[twin]) for s in (whole, cluster))
            assert rows_of(left) == rows_of(right)
            assert left.excluded == right.excluded
        for source in ("A", ["B", "C"]):
            assert rows_of(whole.search("cat", 9, source=source)) == rows_of(cluster.search("cat", 9, source=source))
    whole.close()


def test_hnsw_shards_answer_as_the_merge_of_their_own_answers(tmp_path: Path, embedder: Any) -> None:
    place = build_cluster(tmp_path, embedder, backend="hnsw")
    shards = [tttnn.Datastore.open(tmp_path / f"shard-{i}", embedder) for i in range(3)]
    with tttnn.ClusterDatastore.open(place, embedder) as cluster:
        for query in QUERIES:
            for k in (1, 7, 100):
                each = [(n.distance, i, n.id, n.text) for i, s in enumerate(shards) for n in s.search(query, k)]
                found = [(n.distance, n.id.shard, n.id.local, n.text) for n in cluster.search(query, k)]
                assert found == sorted(each)[:k]
    for shard in shards:
        shard.close()


def test_ids_are_pairs_that_sort_and_print_as_such() -> None:
    ids = [DocumentId.of(s, i) for s in (0, 1, 2, MOST_SHARDS - 1) for i in (0, 1, (1 << 40) - 1)]
    assert sorted(ids, key=int) == ids
    for one in ids:
        assert DocumentId.read(str(one)) == DocumentId.read(str(int(one))) == one
        assert (DocumentId.of(one.shard, one.local), f"{one:>20}".strip()) == (one, f"{one.shard}:{one.local}")
        assert json.loads(json.dumps(one)) == one
        assert float(int(one)) == int(one)  # what JavaScript reads
    for wrong in ("3:", ":3", "a:1", "1:2:3", "-1:2", ""):
        with pytest.raises(ValueError, match="shard:id"):
            DocumentId.read(wrong)
    with pytest.raises(IndexError, match="shard below"):
        DocumentId.of(MOST_SHARDS, 0)


def test_documents_are_read_from_the_shard_that_owns_them(place: Path, embedder: Any) -> None:
    with tttnn.ClusterDatastore.open(place, embedder) as cluster:
        for neighbor in cluster.search("moon", 64):
            document = cluster.documents[neighbor.id]
            assert (document.text, document.source) == (neighbor.text, neighbor.source)
            assert document.text == ROWS[CUTS[neighbor.id.shard] + neighbor.id.local].text
        for wrong in (DocumentId.of(0, 20), DocumentId.of(3, 0), -1):
            with pytest.raises(IndexError):
                cluster.documents[wrong]


# Gathering, on a clock of its own.


def gathered(carrier: FakeCarrier, shards: int, **settings: Any) -> Any:
    times = {"deadline": 10.0, "retry_seconds": 2.0} | settings
    return gather(carrier, "nearest", dict.fromkeys(range(shards), ()), clock=lambda: carrier.now, **times)


def test_the_first_answer_counts_and_another_replica_is_asked_when_one_is_late() -> None:
    carrier = FakeCarrier({(0, 0): 5.0, (0, 1): 1.0, (1, 0): 0.5}, number=2)
    found = gathered(carrier, 2)
    assert found.answers == {0: (0, 1), 1: (1, 0)}
    assert carrier.asked == [(0, 0, 0.0), (1, 0, 0.0), (0, 1, 2.0)]
    assert carrier.now == 3.0
    assert carrier.forgotten == [0]
    assert not (found.failed)
    assert not (found.timed_out)
    assert not (found.failures)


def test_a_replica_that_fails_is_not_waited_for() -> None:
    carrier = FakeCarrier({(0, 0): OSError("gone")}, number=2)
    found = gathered(carrier, 1)
    assert (found.answers, carrier.now) == ({0: (0, 1)}, 0.0)
    assert [(f.shard, f.replica, f.reason) for f in found.failures] == [(0, 0, "OSError: gone")]


def test_what_failed_and_what_was_late_are_told_apart() -> None:
    behaviour = {(0, 0): OSError("a"), (0, 1): OSError("b"), (1, 0): None, (1, 1): 30.0}
    found = gathered(FakeCarrier(behaviour, number=2), 3)
    assert (set(found.answers), found.failed, found.timed_out) == ({2}, {0}, {1})
    assert {(f.shard, f.replica) for f in found.failures} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert [f.seconds for f in found.failures if f.shard == 1] == [10.0, 8.0]


def test_queries_in_turn_begin_at_another_replica() -> None:
    first = []
    for turn in range(4):
        carrier = FakeCarrier({}, number=2)
        gathered(carrier, 1, first_replica=turn)
        first.append(carrier.asked[0][1])
    assert first == [0, 1, 0, 1]


def test_a_replica_that_was_lost_is_asked_again_and_one_that_refuses_is_not() -> None:
    carrier = FakeCarrier({(0, 0): ReplicaLostError("gone"), (0, 1): ReplicaLostError("gone"), (1, 0): OSError("no")})
    carrier.number = 2
    found = gathered(carrier, 2, deadline=7.0)
    assert found.answers == {1: (1, 1)}
    assert found.timed_out == {0}
    assert [asked for asked in carrier.asked if asked[0] == 0] == [
        *((0, 0, 0.0), (0, 1, 0.0), (0, 0, 2.0), (0, 1, 4.0), (0, 0, 6.0))
    ]
    carrier.behaviour[0, 1] = 0.5  # it is back
    assert gathered(carrier, 1, deadline=carrier.now + 7.0).answers == {0: (0, 1)}


def test_a_shard_without_a_replica_failed() -> None:
    found = gathered(FakeCarrier({}, number=0), 1)
    assert (found.failed, found.failures[0].reason) == ({0}, "has no replica")


# What is missing.


def test_a_missing_shard_is_an_error_unless_partial_answers_are_accepted(place: Path, embedder: Any) -> None:
    shutil.move(place.parent / "shard-1", place.parent / "away")
    with pytest.raises(FileNotFoundError, match="shard-1"):
        tttnn.ClusterDatastore.open(place, embedder)
    with tttnn.ClusterDatastore.open(place, embedder, config=PARTIAL) as cluster:
        found = cluster.search("moon 1 cat", 64)
        assert found.coverage is not None
        assert {n.id.shard for n in found} == {0, 2}  # type: ignore[attr-defined]
        said = found.to_dict()["coverage"]
        assert said["shards"] == {"total": 3, "answered": 2, "failed": 1, "timed_out": 0}
        assert said["documents"] == {"searched": 39, "total": 64, "ratio": 39 / 64}
        assert (said["full"], said["failures"][0]["shard"]) == (False, 1)
        assert "shard-1" in said["failures"][0]["reason"]
        shutil.move(place.parent / "away", place.parent / "shard-1")
        again = cluster.search("moon 1 cat", 64)
        assert again.coverage is not None
        assert again.coverage.full


@pytest.mark.parametrize(("least", "answers"), [(0.0, True), (39 / 64, True), (0.61, False), (1.0, False)])
def test_less_than_min_coverage_is_an_error(place: Path, embedder: Any, least: float, answers: bool) -> None:
    shutil.rmtree(place.parent / "shard-1")
    with tttnn.ClusterDatastore.open(place, embedder, config=PARTIAL.with_(min_coverage=least)) as cluster:
        if answers:
            assert len(cluster.search("moon", 64)) == 39
        else:
            with pytest.raises(ClusterError, match=r"coverage must be at least .* got 0.6094.*shard 1"):
                cluster.search("moon", 64)


def test_no_answer_at_all_is_an_error(place: Path, embedder: Any) -> None:
    for i in range(3):
        shutil.rmtree(place.parent / f"shard-{i}")
    with tttnn.ClusterDatastore.open(place, embedder, config=PARTIAL) as cluster, pytest.raises(ClusterError):
        cluster.search("moon", 1)


def test_a_shard_that_is_slow_timed_out(place: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tttnn.cluster.shard import Shard

    nearest = Shard.nearest

    def slow(self: Shard, *arguments: Any) -> Any:
        if self._number == 2:
            time.sleep(1.5)  # five times the deadline; nobody waits for it but `close`
        return nearest(self, *arguments)

    monkeypatch.setattr(Shard, "nearest", slow)
    hasty = PARTIAL.with_(shard_deadline_seconds=0.3)
    with tttnn.ClusterDatastore.open(place, embedder, config=hasty) as cluster:
        coverage = cluster.search("moon", 5).coverage
        strict = tttnn.ClusterDatastore.open(place, embedder, config=hasty.with_(on_missing_shard="error"))
        with strict, pytest.raises(ClusterError, match=r"shard 2 .*no answer in time"):
            strict.search("moon", 5)
    assert coverage is not None
    assert (coverage.shards.timed_out, coverage.shards.failed, coverage.full) == (1, 0, False)


def test_an_owner_that_is_lost_before_texts_are_read_leaves_the_others(
    place: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tttnn.cluster.shard import Shard

    read = Shard.read

    def lost(self: Shard, *arguments: Any) -> Any:
        if self._number == 0:
            raise OSError("the machine is gone")
        return read(self, *arguments)

    monkeypatch.setattr(Shard, "read", lost)
    with tttnn.ClusterDatastore.open(place, embedder, config=PARTIAL) as cluster:
        found = cluster.search("moon", 30)
    assert len(found) == 30
    assert {n.id.shard for n in found} == {1, 2}  # type: ignore[attr-defined]
    assert found.coverage is not None
    assert found.coverage.documents.searched == 44


# Shards that are wrong.


def test_a_shard_is_added_once_by_place_and_by_content(place: Path, built: Path) -> None:
    before = open_cluster(place)
    for again in (place.parent / "shard-1", built / "shard-1"):
        with pytest.raises(DatastoreMismatchError, match="is shard 1 already"):
            add_shards(place, [again])
    assert open_cluster(place) == before


def test_a_shard_of_another_kind_is_refused_by_name(place: Path, tmp_path: Path, embedder: Any) -> None:
    build(tmp_path / "passages", 0, 9, embedder, unit="passage").close()
    build(tmp_path / "stranger", 0, 9, tiny_embedder(seed=5)).close()
    for name, reason in (("passages", "unit is 'passage'"), ("stranger", "embedder 'tiny-5' is another")):
        with pytest.raises(DatastoreMismatchError, match=f"{name}: must be like the other shards.*{reason}"):
            add_shards(place, [tmp_path / name])
    with pytest.raises(DatastoreMismatchError, match="directory of its own"):
        add_shards(tmp_path / "shard-0", [tmp_path / "passages"])


def test_an_older_or_exchanged_shard_is_refused_by_name(place: Path, embedder: Any) -> None:
    older = place.parent / "older"
    shutil.copytree(place.parent / "shard-2", older, symlinks=True)
    with tttnn.ClusterDatastore.open(place, embedder) as cluster:
        cluster.delete([DocumentId.of(2, 3)])
    shutil.rmtree(place.parent / "shard-2")
    shutil.move(older, place.parent / "shard-2")
    with pytest.raises(DatastoreMismatchError, match=r"shard-2: shard 2 must be the datastore .*tttnn cluster replace"):
        tttnn.ClusterDatastore.open(place, embedder)
    with tttnn.ClusterDatastore.open(place, embedder, config=PARTIAL) as cluster:
        found = cluster.search("moon", 5)
        assert found.coverage is not None
        assert "shard 2 must be" in found.coverage.failures[0].reason
        replace_shard(place, 2, place.parent / "shard-2")
        healed = cluster.search("moon", 64)
        assert healed.coverage is not None
        assert healed.coverage.full
        assert len(healed) == 64


@pytest.mark.parametrize("name", ["manifest.json", "index", "texts.zst"])
def test_a_damaged_shard_is_refused_by_name(place: Path, embedder: Any, name: str) -> None:
    damaged = next(p for p in sorted((place.parent / "shard-1").rglob("*")) if p.is_file() and p.name.startswith(name))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0x41
    data[-3] ^= 0x41
    damaged.unlink()  # files may be shared by hard links
    damaged.write_bytes(data)
    with pytest.raises((IndexCorruptError, tttnn.StoreCorruptError), match="shard-1"):
        tttnn.ClusterDatastore.open(place, embedder)


def test_a_damaged_manifest_of_the_cluster_is_refused(place: Path) -> None:
    path = place / "cluster.json"
    fields = json.loads(path.read_text())
    for change in ({"id": "0" * 64}, {"shards": fields["shards"][::-1]}, {"unit": 3}, {"format": 99}):
        path.write_text(json.dumps(fields | change))
        with pytest.raises((IndexCorruptError, tttnn.TttnnError), match=r"cluster\.json"):
            open_cluster(place)


# Changes while it is open.


def test_changes_are_in_the_next_answer(place: Path, tmp_path: Path, embedder: Any) -> None:
    with tttnn.ClusterDatastore.open(place, embedder) as cluster:
        first = cluster.search("moon 1 cat", 1)[0]
        ids = {cluster.id}
        assert cluster.delete([first.id]) == 1
        assert first.id not in [n.id for n in cluster.search("moon 1 cat", 64)]
        assert (len(cluster), len(ids | {cluster.id})) == (63, 2)
        ids.add(cluster.id)
        tttnn.Datastore.build(tmp_path / "more", ["moon 1 cat", "new"], embedder).close()
        add_shards(place, [tmp_path / "more"])
        assert DocumentId.of(3, 0) in [n.id for n in cluster.search("moon 1 cat", 64)]
        ids.add(cluster.id)
        tttnn.Datastore.build(tmp_path / "other", ["something else"], embedder).close()
        replace_shard(place, 3, tmp_path / "other")
        assert [n.text for n in cluster.search("moon 1 cat", 64) if n.id.shard == 3] == ["something else"]  # type: ignore[attr-defined]
        ids.add(cluster.id)
        assert len(ids) == 4
        with pytest.raises(IndexError, match=r"shard 0 .*between 0 and 19, got 20"):
            cluster.delete([DocumentId.of(1, 1), DocumentId.of(0, 20)])
        assert len(cluster.search("moon", 64)) == 64  # nothing was deleted
    with pytest.raises(ValueError, match="closed"):
        cluster.search("moon", 1)


def test_a_change_between_state_and_question_is_searched_again(
    place: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tttnn.ClusterDatastore.open(place, embedder) as cluster, tttnn.ClusterDatastore.open(place) as other:
        attached = tttnn.ClusterDatastore._found
        changed = []

        def late(self: Any, *arguments: Any) -> Any:
            if not changed:
                # As a replica that began again after the change: it has never held the state before.
                changed.append(other.delete([DocumentId.of(1, 0)]))
                cluster._shards._shards[1]._held.clear()  # type: ignore[attr-defined]
            return attached(self, *arguments)

        monkeypatch.setattr(tttnn.ClusterDatastore, "_found", late)
        found = cluster.search("moon", 64)
    assert found.coverage is not None
    assert found.coverage.full
    assert (changed, len(found)) == ([1], 63)


# Wherever a datastore can stand.


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> tuple[TrainerRecipe, TrainerRecipe]:
    """A trainer's recipe with a cluster of two shards, and the same with one datastore."""
    folder = tmp_path_factory.mktemp("recipes")
    whole = saved_recipe(folder, tokenizer)
    embedder = tttnn.Embedder.load(str(folder / "encoder"))
    with tttnn.Datastore.open(whole.datastore) as opened:
        documents = [opened.store[i] for i in range(len(opened))]
    for name, part in (("a", documents[:7]), ("b", documents[7:])):
        tttnn.Datastore.build(folder / name, part, embedder).close()
    add_shards(folder / "cluster", [folder / "a", folder / "b"])
    plain = whole.to_dict() | {"datastore": str(folder / "cluster")}
    return TrainerRecipe.of(plain), whole


def test_a_trainer_takes_a_cluster_as_it_takes_a_datastore(recipes: tuple[TrainerRecipe, TrainerRecipe]) -> None:
    lines = []
    for recipe in recipes:
        recipe.fetch()
        trainer = recipe.load()
        with trainer.adapt("The cat sat on the moon") as adapted:
            report = adapted.report
        again = json.loads(json.dumps(report.to_dict()))
        with trainer.replay(again) as replayed:
            assert replayed.report.losses == report.losses
        result = evaluate(trainer, ["a text to be measured, long enough " * 6], config=tttnn.EvalConfig(curve=(0, 2)))
        lines.append((report.losses, [line.points for line in result.lines], again["coverage"]))
        trainer.release()
    assert lines[0][:2] == lines[1][:2]
    assert (lines[0][2]["full"], lines[1][2]) == (True, None)


def test_what_depends_on_every_document_refuses_partial_answers(recipes: tuple[TrainerRecipe, TrainerRecipe]) -> None:
    from tttnn.evaluation.harness import TttnnLM

    trainer = TrainerRecipe.of(recipes[0].to_dict() | {"cluster": PARTIAL.to_dict()}).load()
    with trainer.adapt("The cat sat on the moon") as adapted:
        report = adapted.report.to_dict()
    for what, attempt in (
        ("an evaluation", lambda: evaluate(trainer, ["a text " * 40])),
        ("an evaluation", lambda: TttnnLM(trainer)),
        ("a replay", lambda: trainer.replay(report)),
    ):
        with pytest.raises(ConfigError, match=f"on_missing_shard must be error for {what}"):
            attempt()
    trainer.release()


def test_commands_take_a_cluster(recipes: tuple[TrainerRecipe, TrainerRecipe], tmp_path: Path) -> None:
    made = Path(recipes[0].datastore).parent
    for name in ("a", "b"):
        shutil.copytree(made / name, tmp_path / name, symlinks=True)
    place, model = str(tmp_path / "cluster"), ["--model", recipes[0].model, "--threads", "1"]
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": "a text to be measured, long enough " * 6}) + "\n")

    def ran(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == code, (arguments, done.output, done.exception)
        return done.stdout

    assert "2 shards, 20 documents" in ran("cluster", "add", place, str(tmp_path / "a"), str(tmp_path / "b"))
    lines = ran("search", place, "The cat", "-k", "20").splitlines()
    assert {line.split()[1] for line in lines if ":" in line.split()[1]} >= {"0:0", "1:12"}
    wanted = ["--num-neighbors", "2", "--max-length", "64"]
    answered = json.loads(ran("generate", place, "The cat", *model, *wanted, "--max-new-tokens", "2", "--json"))
    assert answered["report"]["coverage"]["full"] is True
    (tmp_path / "report.json").write_text(json.dumps(answered))
    assert json.loads(ran("replay", str(tmp_path / "report.json"), place, *model, "--json"))["same"] is True
    docs, out = str(tmp_path / "docs.jsonl"), str(tmp_path / "out.jsonl")
    ran("eval", place, docs, *model, *wanted, "--curve", "0,2", "--out", out)
    audit = ["audit", out, "--datastore", place, "--documents", docs, "--model", recipes[0].model, "--max-share", "1"]
    assert json.loads(ran(*audit, "--json"))["clean"] is True
    assert "20 documents, no damage" in ran("verify", place)
    assert json.loads(ran("delete", place, "1:12", "--json")) == {"deleted": 1, "documents": 19}
    assert json.loads(ran("info", place, "--json"))["documents"] == 19
    assert json.loads(ran("delete", str(tmp_path / "a"), "0", "--json"))["deleted"] == 1
    assert "shard 0 must be the datastore" in str(CliRunner().invoke(app, ["info", place]).exception)
    assert "19 documents" not in ran("cluster", "replace", place, "0", str(tmp_path / "a"))
    assert json.loads(ran("info", place, "--json"))["documents"] == 18


def test_a_shard_tells_how_far_its_build_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoder").mkdir()
    encoder = str(save_encoder(tmp_path / "encoder"))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": row.text}) + "\n" for row in ROWS))
    settings = (CorpusConfig(), tttnn.DatastoreConfig(), tttnn.IndexConfig(), tttnn.EmbedConfig(), tttnn.StoreConfig())
    plan, place = BuildPlan.of([tmp_path / "corpus.jsonl"], 3, encoder, *settings), tmp_path / "pile"
    plan.begin(place)
    monkeypatch.setattr(shard_build, "_PROGRESS_SECONDS", 0.0)
    told: list[Any] = []
    write = shard_build.write_file

    def seen(path: Path, content: bytes) -> None:
        write(path, content)
        told.append(shard_build.read_progress(place, 1))

    monkeypatch.setattr(shard_build, "write_file", seen)
    assert shard_build.read_progress(place, 1).stage == "waiting"
    shard_build.build_shard(place, plan, 1)
    embedded = [one for one in told if one.stage == "embed"][-1]
    assert (embedded.done, embedded.total, embedded.remaining_seconds) == (21, 21, 0.0)
    assert embedded.rates["documents"] > 0
    assert embedded.rates["tokens"] > embedded.rates["documents"]
    assert shard_build.read_progress(place, 1).stage == "done"
    with tttnn.Datastore.open(place / "shards" / "0001") as built:
        assert [document.text for document in built.store] == [row.text for row in ROWS[1::3]]


def test_a_cluster_travels_to_another_process_by_its_place(place: Path, embedder: Any) -> None:
    with tttnn.ClusterDatastore.open(place, embedder, config=PARTIAL) as cluster:
        copy = pickle.loads(pickle.dumps(cluster))
    assert (copy.id, copy.config, len(copy)) == (cluster.id, PARTIAL, 64)
    copy.close()
