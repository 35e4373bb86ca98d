"""Experts trained before the query: the same files whatever interrupts them, used, left out, undone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.conftest import TEXTS, assert_same_state, save_model, state_of, tiny_gpt2, tiny_llama
from tests.test_datastore import cached_embedder
from tttnn.config import ExpertConfig
from tttnn.errors import AdaptError, ConfigError, DatastoreMismatchError, IndexCorruptError
from tttnn.instant.descriptions import described_experts
from tttnn.instant.experts import Experts
from tttnn.instant.fingerprint import fingerprint_of
from tttnn.instant.int4 import pack, unpack
from tttnn.instant.manifest import MANIFEST, STATE
from tttnn.instant.precompute import Precompute
from tttnn.recipe import give_experts
from tttnn.store.document import text_digest

QUERY = "def quicksort("
CONFIG = ExpertConfig(documents=30, max_length=48, rank=4, learning_rate=3e-3)
DOCUMENTS = [f"{text} Number {number} of many." for number in range(12) for text in TEXTS[:4]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tttnn.Datastore]:
    with tttnn.Datastore.build(tmp_path / "store", DOCUMENTS, cached_embedder(3)) as made:
        yield made


@pytest.fixture
def rooted(store: tttnn.Datastore, tokenizer: Any) -> tttnn.Datastore:
    Precompute(store, tiny_llama(), tokenizer, CONFIG, leaves=False).run()
    return store


def trainer_of(store: tttnn.Datastore, tokenizer: Any, model: Any = None, **settings: Any) -> tttnn.TestTimeTrainer:
    config = tttnn.AdaptConfig(
        num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32", mode="instant", max_neighbor_tokens=24
    )
    made = tttnn.TestTimeTrainer(model or tiny_llama(), tokenizer, store, config.with_(**settings))
    give_experts(made, store)
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def experts_folder(store: tttnn.Datastore) -> Path:
    (folder,) = (store.path / "experts").iterdir()
    return folder


def test_a_root_learns_and_leaves_the_model_alone(store: tttnn.Datastore, tokenizer: Any) -> None:
    model = tiny_llama()
    before, flags = state_of(model), [p.requires_grad for p in model.parameters()]
    modules = dict(model.named_modules())
    work = Precompute(store, model, tokenizer, CONFIG, leaves=False)
    estimate = work.estimate()
    report = work.run()
    assert report.trained
    assert report.documents == report.steps == estimate.steps == 30
    assert report.loss_after < report.loss_before - 0.05
    assert abs(report.bytes_on_disk - estimate.bytes_on_disk) < 6000  # the manifest
    assert_same_state(model, before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(modules[name] is module for name, module in model.named_modules())
    assert not work.run().trained  # it is there
    assert not (work.folder / STATE).exists()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_instant_merges_the_root_and_puts_all_back(make: Any, store: tttnn.Datastore, tokenizer: Any) -> None:
    Precompute(store, make(), tokenizer, CONFIG, leaves=False).run()
    trainer = trainer_of(store, tokenizer, make())
    before, base = state_of(trainer.model), trainer.scorer.score(TEXTS[0]).nats
    with trainer.adapt(QUERY) as adapted:
        inside = adapted.score(TEXTS[0]).nats
        report = adapted.report
    assert inside < base - 1
    assert report.steps == 0
    assert report.experts is not None
    assert [(expert.name, expert.weight, expert.documents) for expert in report.experts.used] == [("root", 1.0, 30)]
    assert report.seconds["experts"] >= 0
    assert_same_state(trainer.model, before)
    trainer.verify()
    with trainer.adapt(QUERY) as adapted:  # the next query sees the same
        assert adapted.score(TEXTS[0]).nats == inside
    trainer.release()


def test_auto_trains_from_the_root_until_the_deadline_alone(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(rooted, tokenizer, mode="auto", context_neighbors=0)
    before = state_of(trainer.model)
    with trainer.adapt(QUERY) as adapted:
        assert adapted.report.steps == 0
        root = adapted.score(DOCUMENTS[1]).nats
    with trainer.adapt(QUERY, deadline_ms=600_000) as adapted:
        assert adapted.report.steps == 3
        assert adapted.report.experts is not None
        trained = adapted.score(DOCUMENTS[1]).nats
        first = adapted.report.losses[0]
    exact = trainer.config.with_(mode="exact")
    with trainer.adapt(QUERY, config=exact) as adapted:
        assert adapted.report.experts is None
        assert first < adapted.report.losses[0]  # training began at the root
    assert trained != root
    assert_same_state(trainer.model, before)
    trainer.release()


def test_neighbors_in_the_context_are_counted_and_change_the_score(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(rooted, tokenizer, context_neighbors=2)
    with trainer.adapt(QUERY) as adapted:
        assert [row.tokens for row in adapted.report.context] == [0, 0]
        behind = adapted.score("x = 1").nats
        assert [row.tokens for row in adapted.report.context] == [24, 24]
        texts = trainer.texts
        pieces = [texts.ids(rooted.documents[row.id].text)[:24] + texts.ids("\n\n") for row in adapted.report.context]
        direct = trainer.scorer.score("x = 1", before=[*pieces[1], *pieces[0]]).nats
        assert behind == direct
        assert behind != trainer.scorer.score("x = 1").nats
        made = adapted.generate(max_new_tokens=4)
        assert isinstance(made, str)
        assert adapted.report.generations[-1].prompt_tokens == len(texts.prompt(QUERY, 99)[0]) + 52
        long = "y" * 90  # room for one and a part
        adapted.score(long)
        assert 0 < sum(row.tokens for row in adapted.report.context) < 48
    trainer.release()


def test_a_deleted_document_takes_its_expert_out_at_once(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(rooted, tokenizer)
    base = trainer.scorer.score(TEXTS[0]).nats
    member = trainer.experts.members()["root"][7]  # type: ignore[union-attr]
    with tttnn.Datastore.open(rooted.path, cached_embedder(3)) as other:  # another process
        other.delete([member.id])
    with trainer.adapt(QUERY) as adapted:
        assert adapted.score(TEXTS[0]).nats == base
        assert adapted.report.experts is not None
        assert adapted.report.experts.left_out == {"deleted": 1}
        assert adapted.report.experts.used == []
    (described,) = described_experts(rooted)
    assert (described["stale"], described["experts"][0]["deleted"]) == (1, 1)
    work = Precompute(rooted, tiny_llama(), tokenizer, CONFIG, leaves=False)
    with pytest.raises(FileExistsError, match="--update"):
        work.run()
    assert work.run(update=True).trained
    assert member not in trainer.experts.members()["root"]  # type: ignore[union-attr]
    with trainer.adapt(QUERY) as adapted:
        assert adapted.score(TEXTS[0]).nats < base
    (described,) = described_experts(rooted)
    assert not described["stale"]
    # As if it had been trained for the first time now, but for the files' number.
    found = files_of(experts_folder(rooted))
    shutil.rmtree(rooted.path / "experts")
    Precompute(rooted, tiny_llama(), tokenizer, CONFIG, leaves=False).run()
    fresh = files_of(experts_folder(rooted))
    assert found["experts.2.bin"] == fresh["experts.1.bin"]
    assert found["members.2.bin"] == fresh["members.1.bin"]
    trainer.release()


def test_an_excluded_text_takes_its_expert_out_of_that_query(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(rooted, tokenizer)
    base = trainer.scorer.score(TEXTS[0]).nats
    member = trainer.experts.members()["root"][0]  # type: ignore[union-attr]
    with trainer.adapt(QUERY, exclude_digests=[member.digest]) as adapted:
        assert adapted.score(TEXTS[0]).nats == base
        assert adapted.report.experts is not None
        assert adapted.report.experts.left_out == {"excluded": 1}
    with trainer.adapt(QUERY, exclude_digests=[text_digest("another text")]) as adapted:
        assert adapted.report.experts is not None
        assert adapted.report.experts.left_out == {}
    trainer.release()


def test_a_far_query_uses_nothing_and_says_so(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(rooted, tokenizer, expert_distance=0.0)
    with trainer.adapt("nothing like it") as adapted:
        experts = adapted.report.experts
        assert experts is not None
        assert experts.left_out == {"far": 1}
        assert experts.distance is not None
        assert experts.distance > 0
    near = trainer.config.with_(expert_distance=experts.distance)
    with trainer.adapt("nothing like it", config=near) as adapted:
        assert adapted.report.experts is not None
        assert len(adapted.report.experts.used) == 1
    trainer.release()


def test_appended_documents_are_counted_as_not_learned(rooted: tttnn.Datastore) -> None:
    rooted.append(["One more.", "And another one."])
    (described,) = described_experts(rooted)
    assert (described["not_learned"], described["stale"]) == (2, 0)


def test_experts_of_another_model_or_tokenizer_are_refused(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    other = trainer_of(rooted, tokenizer, tiny_gpt2())
    with pytest.raises(DatastoreMismatchError, match="must hold experts of the model"), other.adapt(QUERY):
        pass
    other.release()
    folder = experts_folder(rooted)
    shutil.copytree(folder, folder.with_name(fingerprint_of(tiny_gpt2())))
    renamed = trainer_of(rooted, tokenizer, tiny_gpt2())
    with pytest.raises(DatastoreMismatchError, match="is of the model"), renamed.adapt(QUERY):
        pass
    renamed.release()
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["quick"])
    model = tiny_llama()
    experts = Experts(rooted, model=fingerprint_of(model), tokenizer=changed)
    with pytest.raises(DatastoreMismatchError, match="tokenizer"):
        experts.choose(QUERY, tttnn.AdaptConfig(), (), distance=None)


def test_without_experts_or_with_a_guard_the_mode_is_refused(store: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(store, tokenizer)
    with pytest.raises(FileNotFoundError, match="tttnn precompute"), trainer.adapt(QUERY):
        pass
    trainer.experts = None
    with pytest.raises(ConfigError, match="tttnn precompute"):
        trainer.adapt(QUERY)
    trainer.release()
    guarded = trainer_of(store, tokenizer, guard="query")
    with pytest.raises(ConfigError, match="guard must be none"):
        guarded.adapt(QUERY)
    guarded.release()


def test_every_byte_of_every_file_is_watched(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(rooted, tokenizer)
    folder = experts_folder(rooted)
    generator = np.random.default_rng(5)
    for path in sorted(folder.glob("*.*")):
        if path.name == ".lock":
            continue
        whole = path.read_bytes()
        places = {0, 9, 15, 20, 49, 57, len(whole) - 1, *generator.integers(0, len(whole), 4).tolist()}
        for place in sorted(places):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            (folder / MANIFEST).touch()
            give_experts(trainer, rooted)  # as after a start
            with pytest.raises((IndexCorruptError, DatastoreMismatchError), match=path.name), trainer.adapt(QUERY):
                pass
        path.write_bytes(whole[:-1])
        give_experts(trainer, rooted)
        with pytest.raises(IndexCorruptError, match=path.name), trainer.adapt(QUERY):
            pass
        path.write_bytes(whole)
    give_experts(trainer, rooted)
    with trainer.adapt(QUERY) as adapted:
        assert adapted.report.experts is not None
    trainer.release()


def test_replay_repeats_experts_context_and_steps(rooted: tttnn.Datastore, tokenizer: Any) -> None:
    trainer = trainer_of(rooted, tokenizer, mode="auto", context_neighbors=2)
    with trainer.adapt(QUERY, deadline_ms=600_000) as adapted:
        nats = adapted.score(TEXTS[1]).nats
        weights = state_of(trainer.model)
    held = json.loads(json.dumps(adapted.report.to_dict(query=True)))
    with trainer.replay(held) as again:
        assert again.score(TEXTS[1]).nats == nats
        assert again.report.losses == adapted.report.losses
        assert again.report.experts == adapted.report.experts
        assert_same_state(trainer.model, weights)
    held["experts"]["used"][0]["members"] = "0" * 32
    with pytest.raises(AdaptError, match="must be the one of the datastore"), trainer.replay(held):
        pass
    trainer.release()


def test_a_merge_is_saved_for_peft(rooted: tttnn.Datastore, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trainer_of(rooted, tokenizer)
    with trainer.adapt(QUERY) as adapted:
        adapted.save_adapter(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    auto = trainer.config.with_(mode="auto", deadline_ms=600_000.0)
    with trainer.adapt(QUERY, config=auto) as adapted, pytest.raises(AdaptError, match="no step followed"):
        adapted.save_adapter(tmp_path / "other")
    trainer.release()


def test_the_expert_rows_are_near_what_was_trained() -> None:
    numbers = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    numbers[128:256] = 0
    packed, scales = pack(numbers)
    found = unpack(packed, scales, 1000)
    assert len(packed) == 512
    assert np.abs(found - numbers).max() <= scales.max() / 2 * 1.0001
    assert not found[128:256].any()
    assert np.array_equal(unpack(*pack(found), 1000), found)


KILLED = """
import sys, torch
torch.set_num_threads(1)
import tttnn
from tttnn.lm.loading import load_model
from tttnn.instant import low_rank_training
from tttnn.instant.precompute import Precompute
from tests.test_instant import CONFIG
low_rank_training.SAVE_EVERY = 3
model, tokenizer = load_model(sys.argv[2])
store = tttnn.Datastore.open(sys.argv[1])
work = Precompute(store, model, tokenizer, CONFIG, leaves=False)
work.run(progress=lambda stage, done, total: print(done, flush=True))
"""


def test_kills_give_the_same_files(store: tttnn.Datastore, tokenizer: Any, tmp_path: Path, one_thread: None) -> None:
    name = save_model(tmp_path / "model", tiny_llama(), tokenizer)
    command = [sys.executable, "-c", KILLED, str(store.path), name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for after in (4, 14):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= after:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        (folder,) = (store.path / "experts").iterdir()
        assert not (folder / MANIFEST).exists()
        assert (folder / STATE).exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    resumed = files_of(store.path / "experts")
    shutil.rmtree(store.path / "experts")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    assert files_of(store.path / "experts") == resumed


def test_a_damaged_state_of_training_is_refused(store: tttnn.Datastore, tokenizer: Any) -> None:
    work = Precompute(store, tiny_llama(), tokenizer, CONFIG, leaves=False)

    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run(progress=stop)
    path = work.folder / STATE
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"x" + whole[101:])
    with pytest.raises(IndexCorruptError, match=STATE):
        work.run()
    path.write_bytes(whole)
    assert work.run().trained
