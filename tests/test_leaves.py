"""Experts of clusters: trained from the root, the same files whatever happens, chosen by nearness, left out, undone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tttnn
from tests.conftest import TEXTS, assert_same_state, save_model, state_of, tiny_llama
from tests.test_datastore import cached_embedder
from tests.test_instant import files_of
from tttnn.cli.loading import Loading
from tttnn.cli.program import app
from tttnn.config import DatastoreConfig, ExpertConfig
from tttnn.errors import ConfigError, IndexCorruptError
from tttnn.instant.asked import ask, asked_by, asked_for, begin_asked, largest_first, watched
from tttnn.instant.clusters import cluster_centers, distances_to, nearest_centers
from tttnn.instant.descriptions import described_experts
from tttnn.instant.experts import Experts
from tttnn.instant.fingerprint import fingerprint_of
from tttnn.instant.manifest import MANIFEST, read_experts
from tttnn.instant.precompute import Precompute
from tttnn.instant.rows import ExpertRows
from tttnn.recipe import give_experts
from tttnn.weights.low_rank_update import shared_a

QUERY = "def quicksort("
CONFIG = ExpertConfig(
    documents=10, max_length=40, rank=4, learning_rate=3e-3, cluster_size=8, leaf_documents=4, leaf_learning_rate=3e-3
)
DOCUMENTS = [f"{text[: 20 + number]} Number {number} of many." for number in range(12) for text in TEXTS[:4]]


def plain_store(path: Path) -> tttnn.Datastore:
    return tttnn.Datastore.build(path, DOCUMENTS, cached_embedder(3))


def grow(store: tttnn.Datastore, tokenizer: Any, config: ExpertConfig = CONFIG, **options: Any) -> Any:
    return Precompute(store, tiny_llama(), tokenizer, config).run(**options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A datastore with experts of all clusters; copied for each test."""
    path: Path = tmp_path_factory.mktemp("leaves") / "store"
    with plain_store(path) as store:
        grow(store, tokenizer)
    return path


@pytest.fixture
def grown(made: Path, tmp_path: Path) -> Iterator[tttnn.Datastore]:
    shutil.copytree(made, tmp_path / "store", symlinks=True)
    with tttnn.Datastore.open(tmp_path / "store", cached_embedder(3)) as store:
        yield store


@pytest.fixture
def trainer(grown: tttnn.Datastore, tokenizer: Any) -> Iterator[tttnn.TestTimeTrainer]:
    config = tttnn.AdaptConfig(num_neighbors=3, max_length=64, precision="float32", mode="instant")
    made = tttnn.TestTimeTrainer(tiny_llama(), tokenizer, grown, config)
    give_experts(made, grown)
    yield made
    made.release()


def folder_of(store: tttnn.Datastore) -> Path:
    (folder,) = (store.path / "experts").iterdir()
    return folder


def manifest_of(store: tttnn.Datastore) -> Any:
    return read_experts(folder_of(store), model=folder_of(store).name)


def rows_of(store: tttnn.Datastore) -> dict[str, bytes]:
    rows = ExpertRows(folder_of(store), manifest_of(store))
    return {entry.name: rows.row(entry.row) for entry in manifest_of(store).experts}


def used_by(trainer: tttnn.TestTimeTrainer, query: str = QUERY, **options: Any) -> Any:
    with trainer.adapt(query, **options) as adapted:
        return adapted.report.experts


def test_leaves_learn_more_than_the_root(grown: tttnn.Datastore, tokenizer: Any) -> None:
    report = grow(grown, tokenizer)
    assert report.leaves == report.leaves_there == 6
    assert report.leaves_trained == report.steps == 0  # all are there
    assert report.leaf_loss_after < report.leaf_loss_before - 0.05
    (described,) = described_experts(grown, full=True)
    assert (described["leaves"], described["leaves_there"], described["stale"]) == (6, 6, 0)
    assert sum(expert["documents"] for expert in described["experts"][1:]) <= 6 * 4
    estimate = Precompute(grown, tiny_llama(), tokenizer, CONFIG).estimate()
    assert estimate.leaves == 6
    assert abs(report.bytes_on_disk - estimate.bytes_on_disk) < 12000  # the manifest, and blocks of the file system


def test_the_nearest_leaves_are_merged_exactly_and_put_back(
    grown: tttnn.Datastore, trainer: tttnn.TestTimeTrainer
) -> None:
    before = state_of(trainer.model)
    with trainer.adapt(QUERY) as adapted:
        inside = state_of(trainer.model)
        used = adapted.report.experts.used  # type: ignore[union-attr]
        score = adapted.score(TEXTS[0]).nats
    assert_same_state(trainer.model, before)
    trainer.verify()
    root, *leaves = used
    assert (root.name, root.weight, root.distance) == ("root", 1.0, None)
    assert len(leaves) == 2
    distances = [leaf.distance for leaf in leaves]
    assert distances == sorted(distances)
    shares = np.exp(-np.array(distances) / 2 / 0.1)
    assert np.allclose([leaf.weight for leaf in leaves], shares / shares.sum(), rtol=1e-12)
    manifest = manifest_of(grown)
    rows = ExpertRows(folder_of(grown), manifest)
    of = {entry.name: entry.row for entry in manifest.experts}
    total = sum(expert.weight * rows.read(of[expert.name]).astype(np.float64) for expert in used)
    a = shared_a({layer.name: (layer.outputs, layer.inputs) for layer in manifest.layers}, rank=4, seed=0)
    begin = 0
    for layer in manifest.layers:
        b = torch.from_numpy(total[begin : begin + layer.outputs * 4].reshape(layer.outputs, 4))
        begin += layer.outputs * 4
        wanted = before[f"{layer.name}.weight"].double() + 2.0 * (b @ a[layer.name].double())
        # Roundings of float32: of the sum of experts, of the product and of its sum with the weight.
        assert torch.allclose(inside[f"{layer.name}.weight"].double(), wanted, rtol=5e-7, atol=5e-8), layer.name
    assert begin == len(total)
    assert used_by(trainer, config=trainer.config.with_(leaves=0)).used == [root]
    with trainer.adapt(QUERY, config=trainer.config.with_(leaves=0)) as adapted:
        assert adapted.score(TEXTS[0]).nats != score


def test_merging_is_bit_equal_for_any_threads(grown: tttnn.Datastore, tokenizer: Any, one_thread: None) -> None:
    config = tttnn.AdaptConfig(leaves=4)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        experts = Experts(grown, model=fingerprint_of(tiny_llama()), tokenizer=tokenizer)
        chosen = experts.choose(QUERY, config, (), distance=None)
        again = experts.named(list(reversed(chosen.report.used)))  # named in another order
        assert chosen.update is not None
        assert again is not None
        found += [chosen.update.layers, again.layers]
    torch.set_num_threads(1)
    for layers in found[1:]:
        assert all(torch.equal(b, found[0][name][1]) for name, (_, b) in layers.items())


def test_what_a_leaf_leaves_stays_with_the_root(grown: tttnn.Datastore, trainer: tttnn.TestTimeTrainer) -> None:
    whole = used_by(trainer)
    first = whole.used[1]
    root_saw = {member.id for member in trainer.experts.members()["root"]}  # type: ignore[union-attr]
    members = trainer.experts.members()[first.name]  # type: ignore[union-attr]
    mine = next(member for member in members if member.id not in root_saw)
    without = used_by(trainer, exclude_digests=[mine.digest])
    assert without.left_out == {"excluded": 1}
    assert without.used == [whole.used[0], whole.used[2]]  # with the weight that it had
    far = used_by(trainer, config=trainer.config.with_(leaf_distance=(first.distance + whole.used[2].distance) / 2))
    assert far.left_out == {"far": 1}
    assert far.used == whole.used[:2]
    grown.delete([mine.id])
    assert used_by(trainer).left_out == {"deleted": 1}


def test_without_the_root_no_leaf_is_used(grown: tttnn.Datastore, trainer: tttnn.TestTimeTrainer) -> None:
    member = trainer.experts.members()["root"][3]  # type: ignore[union-attr]
    report = used_by(trainer, exclude_digests=[member.digest])
    assert (report.used, report.left_out) == ([], {"excluded": 1})
    grown.delete([member.id])
    report = used_by(trainer)
    assert (report.used, report.left_out) == ([], {"deleted": 1})


def test_auto_reads_what_the_deadline_leaves_time_for(trainer: tttnn.TestTimeTrainer) -> None:
    config = trainer.config.with_(mode="auto", context_neighbors=3, max_neighbor_tokens=20)
    pace = trainer.engine.reading_pace

    def read(deadline_ms: float | None) -> tuple[int, int]:
        with trainer.adapt(QUERY, config=config.with_(deadline_ms=deadline_ms)) as adapted:
            assert adapted.report.experts is not None
            assert len(adapted.report.experts.used) == 3
            held = adapted.report.to_dict(query=True)
        with trainer.replay(held) as again:
            assert len(again.report.context) == len(adapted.report.context)
            assert again.report.losses == adapted.report.losses
        return len(adapted.report.context), adapted.report.steps

    assert read(1e9) == (3, 3)
    pace.saw(1000.0, 1)  # a thousand seconds a token; 22 tokens a neighbor
    assert read(None) == (3, 0)
    assert read(2.5 * 22e6) == (2, 3)
    assert read(22e6 - 1) == (0, 3)
    assert pace.predict(1) < 1000.0  # what was given up is tried again some day
    trainer.engine.training_pace.saw(1e5, 1)
    pace.saw(1000.0, 1)
    assert read(22e6 + 1e5) == (1, 0)  # reading has taken the time of training


def test_update_trains_what_changed_alone(grown: tttnn.Datastore, tokenizer: Any) -> None:
    members = Experts(grown, model=fingerprint_of(tiny_llama()), tokenizer=tokenizer).members()
    root_saw = {member.id for member in members["root"]}
    leaf, mine = next(
        (name, member)
        for name, seen in members.items()
        for member in seen
        if member.id not in root_saw and name != "root"
    )
    rows_before = {
        entry.name: ExpertRows(folder_of(grown), manifest_of(grown)).row(entry.row)
        for entry in manifest_of(grown).experts
    }
    grown.delete([mine.id])
    (described,) = described_experts(grown)
    assert [expert["name"] for expert in described["experts"] if expert["stale"]] == [leaf]
    with pytest.raises(FileExistsError, match="--update"):
        grow(grown, tokenizer)
    report = grow(grown, tokenizer, update=True)
    assert (report.trained, report.leaves_trained, report.leaves_there) == (False, 1, 6)
    assert {name for name, row in rows_of(grown).items() if row != rows_before[name]} == {leaf}
    grown.append(["def quicksort(items, more): Number 99 of many."])
    assert described_experts(grown)[0]["not_learned"] == 1
    report = grow(grown, tokenizer, update=True)  # it may or may not be near enough to a center to be trained on
    assert not report.trained
    assert report.leaves_trained <= 1
    assert described_experts(grown)[0]["not_learned"] == (0 if report.leaves_trained else 1)
    root = next(iter(root_saw))
    grown.delete([root])
    report = grow(grown, tokenizer, update=True)
    assert report.trained
    assert report.leaves_trained == report.leaves == 5  # clusters are found anew too, among 47 documents


def test_the_most_wanted_come_first_and_time_ends_it(tmp_path: Path, tokenizer: Any) -> None:
    with plain_store(tmp_path / "store") as store:
        report = grow(store, tokenizer, limit_seconds=0)
        assert (report.trained, report.leaves, report.leaves_there) == (True, 6, 0)
        assert used_reasons(store, tokenizer) == {"untrained": 2}
        vector = store.embedder.embed([QUERY])[0]
        done: list[int] = []

        def stop(stage: str, there: int, total: int | None) -> None:
            done.append(there)
            if there == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            grow(store, tokenizer, queries=[vector], progress=stop)
        assert used_reasons(store, tokenizer) == {}
        assert grow(store, tokenizer).leaves_there == 6


def used_reasons(store: tttnn.Datastore, tokenizer: Any) -> dict[str, int]:
    experts = Experts(store, model=fingerprint_of(tiny_llama()), tokenizer=tokenizer)
    return experts.choose(QUERY, tttnn.AdaptConfig(), (), distance=None).report.left_out


def test_watching_trains_what_queries_miss(tmp_path: Path, tokenizer: Any) -> None:
    with plain_store(tmp_path / "store") as store:
        grow(store, tokenizer, limit_seconds=0)
        asked = folder_of(store) / manifest_of(store).asked_file
        used_reasons(store, tokenizer)
        assert not asked.exists()  # nobody wants to know
        missed: set[str] = set()

        def stop(stage: str, there: int, total: int | None) -> None:
            if there == 0:
                experts = Experts(store, model=fingerprint_of(tiny_llama()), tokenizer=tokenizer)
                experts.choose(QUERY, tttnn.AdaptConfig(), (), distance=None)
                missed.update(f"leaf-{cluster}" for cluster in asked_for(asked))
            if there == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            grow(store, tokenizer, watch=True, progress=stop)
        assert len(missed) == 2
        assert {entry.name for entry in manifest_of(store).experts} == {"root", *missed}


def test_every_byte_of_every_file_is_watched(grown: tttnn.Datastore) -> None:
    folder = folder_of(grown)
    generator = np.random.default_rng(6)
    paths = sorted(path for path in folder.glob("*.*") if path.name != ".lock")
    assert len(paths) == 4
    for path in paths:
        whole = path.read_bytes()
        for place in sorted({0, 9, 15, 20, 49, 57, len(whole) - 1, *generator.integers(0, len(whole), 6).tolist()}):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(IndexCorruptError, match=path.name):
                described_experts(grown, full=True)
        for cut in (0, 70, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(IndexCorruptError, match=path.name):
                described_experts(grown, full=True)
        path.unlink()
        if path.name != MANIFEST:
            with pytest.raises(FileNotFoundError, match=path.name):
                described_experts(grown, full=True)
        path.write_bytes(whole)
    described_experts(grown, full=True)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
@pytest.mark.parametrize("query", [None, QUERY])
def test_peft_loads_what_export_expert_writes(
    grown: tttnn.Datastore,
    trainer: tttnn.TestTimeTrainer,
    tokenizer: Any,
    tmp_path: Path,
    query: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(Loading, "attach", lambda _self, opened, _bars: opened.attach(cached_embedder(3)))
    name = save_model(tmp_path / "model", tiny_llama(), tokenizer)
    command = ["export-expert", str(grown.path), str(tmp_path / "adapter"), "--model", name]
    command += [] if query is None else ["--merged-for", query]
    ran = CliRunner().invoke(app, [*command, "--json"])
    assert ran.exit_code == 0, ran.output
    assert len(json.loads(ran.stdout)["experts"]) == (1 if query is None else 3)
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, FileExistsError)
    ids = torch.tensor([list(range(40, 90))])
    config = trainer.config.with_(leaves=0 if query is None else 2)
    with trainer.adapt(QUERY, config=config) as adapted, torch.no_grad():
        ours = adapted.model(input_ids=ids).logits.clone()
        adapted.save_adapter(tmp_path / "other")
    for folder in ("adapter", "other"):
        theirs = peft.PeftModel.from_pretrained(tiny_llama().eval(), str(tmp_path / folder))
        with torch.no_grad():
            found = theirs(input_ids=ids).logits
            base = tiny_llama().eval()(input_ids=ids).logits
        assert torch.allclose(ours, found, atol=1e-4)
        assert not torch.allclose(ours, base, atol=1e-2)


def test_passages_have_no_leaves(tmp_path: Path, tokenizer: Any) -> None:
    passages = DatastoreConfig(unit="passage")
    with tttnn.Datastore.build(tmp_path / "store", DOCUMENTS[:8], cached_embedder(3), config=passages) as store:
        with pytest.raises(ConfigError, match="--only root"):
            Precompute(store, tiny_llama(), tokenizer, CONFIG)  # before anything is trained
        assert Precompute(store, tiny_llama(), tokenizer, CONFIG, leaves=False).run().leaves == 0


def test_files_are_the_same_whatever_came_first_and_what_an_interruption_left(
    made: Path, tmp_path: Path, tokenizer: Any
) -> None:
    with tttnn.Datastore.open(made, cached_embedder(3)) as store:
        whole = rows_of(store)
    with plain_store(tmp_path / "store") as store:
        grow(store, tokenizer, limit_seconds=0)
        manifest, path = manifest_of(store), folder_of(store) / manifest_of(store).rows_file
        rows = ExpertRows(folder_of(store), manifest)
        begin = rows.nbytes - len(rows.row(0))
        with path.open("r+b") as file:  # killed between half of a row and its manifest
            file.seek(begin)
            file.write(b"half of a row" * 3)
        described_experts(store, full=True)
        grow(store, tokenizer, queries=list(store.embedder.embed([QUERY, DOCUMENTS[7]])))
        assert rows_of(store) == whole
        assert list(rows_of(store)) == list(whole)


def test_search_says_which_experts_a_text_would_use(
    grown: tttnn.Datastore,
    trainer: tttnn.TestTimeTrainer,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Loading, "datastore", lambda *_: grown)
    name = save_model(tmp_path / "model", tiny_llama(), tokenizer)
    command = ["search", str(grown.path), QUERY, "-k", "2", "--model", name, "--mode", "instant"]
    for leaves in (0, 2):
        used = used_by(trainer, config=trainer.config.with_(leaves=leaves)).used
        ran = CliRunner().invoke(app, [*command, "--leaves", str(leaves), "--json"])
        assert ran.exit_code == 0, ran.output
        told = json.loads(ran.stdout)
        assert told["experts"]["used"] == [dataclasses.asdict(expert) for expert in used]
        assert len(told["neighbors"]) == 2
        ran = CliRunner().invoke(app, [*command, "--leaves", str(leaves)])
        assert [line.split()[1].rstrip(",") for line in ran.stdout.splitlines() if " documents" in line] == [
            expert.name for expert in used
        ]
    queries = tmp_path / "queries.txt"
    queries.write_text(f"{QUERY}\nanother one\n")
    command = ["search", str(grown.path), "--queries", str(queries), "--model", name]
    ran = CliRunner().invoke(app, [*command, "--mode", "auto"])
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [len(line["experts"]["used"]) for line in lines] == [3, 3]
    plain = CliRunner().invoke(app, command)
    assert all("experts" not in json.loads(line) for line in plain.stdout.splitlines())


KILLED = """
import sys, torch
torch.set_num_threads(1)
import tttnn
from tttnn.lm.loading import load_model
from tttnn.instant.leaf_workers import LeafRecipe
from tttnn.instant.precompute import Precompute
from tests.test_leaves import CONFIG
if __name__ == "__main__":
    model, tokenizer = load_model(sys.argv[2])
    store = tttnn.Datastore.open(sys.argv[1])
    work = Precompute(store, model, tokenizer, CONFIG)
    recipe = LeafRecipe(sys.argv[2], None, "cpu", 1)
    work.run(workers=int(sys.argv[3]), recipe=recipe, progress=lambda *done: print(*done, flush=True))
"""


@pytest.mark.slow
def test_kills_and_workers_give_the_same_files(made: Path, tokenizer: Any, tmp_path: Path, one_thread: None) -> None:
    name = save_model(tmp_path / "model", tiny_llama(), tokenizer)
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    files = []
    for run, kills in (("killed", [3]), ("whole", [])):
        store = tmp_path / run
        shutil.copytree(made, store, symlinks=True)
        shutil.rmtree(store / "experts")
        for after in [*kills, None]:
            workers = "1" if after is not None or run == "whole" else "2"
            command = [sys.executable, str(script), str(store), name, workers]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    stage, done, _ = line.split()
                    if after is not None and stage == "leaves" and int(done) >= after:
                        process.send_signal(signal.SIGKILL)
                        break
            assert process.returncode == (0 if after is None else -signal.SIGKILL)
        files.append(files_of(store / "experts"))
    assert len(files[0]) == 5  # with the lock's
    assert files[0] == files[1]


def test_clusters_are_those_of_the_nearest_centers() -> None:
    generator = np.random.default_rng(4)
    vectors = generator.standard_normal((200, 5)).astype(np.float32)
    vectors[:50] = vectors[0]  # some alike: not as many clusters as asked for
    centers = cluster_centers(vectors, 60, 1)
    assert np.array_equal(centers, cluster_centers(vectors, 60, 1))
    found, distances = nearest_centers(vectors, centers)
    assert 5 < len(centers) < 60
    assert set(found.tolist()) == set(range(len(centers)))  # none without a vector
    for vector, nearest, distance in zip(vectors, found, distances, strict=True):
        every = distances_to(vector, centers)
        assert every[nearest] <= every.min() + 1e-6
        assert distance == pytest.approx(every[nearest], abs=1e-6)


def test_order_goes_by_asking_then_size_then_number() -> None:
    assert largest_first([3, 9, 9, 1], Counter({0: 2, 3: 2})) == [0, 3, 1, 2]
    centers = np.eye(4, dtype=np.float32)
    assert asked_by([centers[2], centers[2]], centers, 1) == {2: 2}


def test_what_queries_missed_is_read_whatever_else_stands_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "asked.1.bin"
    ask(path, [1])
    assert asked_for(path) == {}  # nobody watches
    begin_asked(path)
    ask(path, [1, 3])
    ask(path, [3])
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xff\x01")  # no cluster, and one that was cut
    missing = {0, 1, 3}
    wanted = watched(path, missing)
    assert [next(wanted), next(wanted)] == [3, 1]
    assert missing == {0}
    begin_asked(path)  # somebody watches again: nothing is forgotten
    assert asked_for(path)[3] == 2
