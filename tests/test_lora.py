"""Trainable subsets and LoRA: what is trained moves, what is not does not, and no trace stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GitConfig, GitForCausalLM

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, save_model, state_of, tiny_gpt2, tiny_llama
from tttnn.lm.score import Scorer
from tttnn.weights.lora import LowRankLayers
from tttnn.weights.trainable import last_layers, trained_elements, trained_names

QUERY = "def quicksort("
BASE = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32")


def trainer_for(model: Any, tokenizer: Any, **settings: Any) -> tttnn.TestTimeTrainer:
    return tttnn.TestTimeTrainer(model, tokenizer, FakeRetriever(TEXTS), BASE.with_(**settings))


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in state_of(model).items() if not torch.equal(tensor, before[name])}


SUBSETS: list[tuple[dict[str, Any], Any]] = [
    ({"trainable": "all"}, lambda name: True),
    ({"trainable": "no-embeddings"}, lambda name: "wte" not in name and "wpe" not in name),
    ({"trainable": "last-layers", "last_layers": 1}, lambda name: ".h.1." in name),
    (
        {"trainable": "patterns", "trainable_patterns": ("*.mlp.*", "transformer.ln_f.*")},
        lambda name: ".mlp." in name or "ln_f" in name,
    ),
    ({"trainable": "lora"}, lambda name: ".lora_" in name),
    ({"trainable": "lora", "lora_targets": ("c_fc", "*.h.0.attn.c_attn")}, lambda name: ".lora_" in name),
]


@pytest.mark.parametrize(("settings", "is_trained"), SUBSETS)
def test_exactly_the_subset_is_trained_and_put_back(settings: dict[str, Any], is_trained: Any, tokenizer: Any) -> None:
    model = tiny_gpt2()
    untouched = state_of(model)
    modules, flags = dict(model.named_modules()), [p.requires_grad for p in model.parameters()]
    trainer = trainer_for(model, tokenizer, **settings)
    before = state_of(model)
    inside_flags = [p.requires_grad for p in model.parameters()]
    with trainer.adapt(QUERY):
        moved = changed(model, before)
    parameters = {name for name, _ in model.named_parameters()}
    assert moved == {name for name in parameters if is_trained(name)}
    assert moved
    assert_same_state(model, before)
    assert [p.requires_grad for p in model.parameters()] == inside_flags
    trainer.verify()
    trainer.release()
    assert_same_state(model, untouched)
    assert dict(model.named_modules()).keys() == modules.keys()
    assert all(modules[name] is module for name, module in model.named_modules())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not hasattr(model, "peft_config")


def test_the_fingerprint_is_that_of_the_base_model(tokenizer: Any) -> None:
    for make in (tiny_gpt2, tiny_llama):
        found = set()
        for trainable in ("all", "no-embeddings", "last-layers", "lora"):
            trainer = trainer_for(make(), tokenizer, trainable=trainable, last_layers=1)
            found.add(trainer.fingerprint)
            trainer.release()
        assert len(found) == 1


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_low_rank_training_starts_at_the_base_model_and_learns(make: Any, tokenizer: Any) -> None:
    model = make()
    base = Scorer(model, tokenizer).score(TEXTS[0]).nats
    trainer = trainer_for(model, tokenizer, trainable="lora", lora_rank=4, learning_rate=1e-2)
    assert trainer.scorer.score(TEXTS[0]).nats == base
    with trainer.adapt(QUERY) as adapted:
        assert adapted.score(TEXTS[0]).nats < base
    assert trainer.scorer.score(TEXTS[0]).nats == base
    trainer.release()


def test_matrices_are_drawn_by_the_seed_alone(tokenizer: Any) -> None:
    def matrices(seed: int, noise: int, targets: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        model = tiny_llama()
        torch.manual_seed(noise)
        random_state = torch.random.get_rng_state()
        layers = LowRankLayers(model, rank=4, alpha=8.0, targets=targets, seed=seed).insert()
        assert torch.equal(torch.random.get_rng_state(), random_state)
        return {name: model.get_parameter(name).detach().clone() for name in layers.names}

    first, second, other = matrices(0, noise=1), matrices(0, noise=2), matrices(1, noise=1)
    few = matrices(0, noise=3, targets=("q_proj",))
    assert len(first) == 2 * 7 * 2
    assert len(few) == 2 * 2
    for name, matrix in first.items():
        assert torch.equal(matrix, second[name])
        if name.endswith(".lora_A"):
            assert not torch.equal(matrix, other[name])
            assert 0 < matrix.abs().max() <= matrix.shape[1] ** -0.5  # as torch draws a linear layer
        else:
            assert not matrix.any()
        if name in few:
            assert torch.equal(matrix, few[name])


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_saved_low_rank_model_is_a_plain_one(make: Any, tokenizer: Any, tmp_path: Any) -> None:
    trainer = trainer_for(make(), tokenizer, trainable="lora", learning_rate=1e-2)
    base = trainer.scorer.score(TEXTS[0]).nats
    with trainer.adapt(QUERY) as adapted:
        adapted.save_pretrained(tmp_path / "adapted")
        inside = adapted.score(TEXTS[0]).nats
    trainer.release()
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapted")
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in make().named_parameters()]
    assert Scorer(loaded, tokenizer).score(TEXTS[0]).nats == pytest.approx(inside, rel=1e-5)
    assert inside != pytest.approx(base, rel=1e-3)


def test_low_rank_matrices_of_a_bfloat16_model_are_trained_on_float32(tokenizer: Any) -> None:
    model = tiny_llama().to(torch.bfloat16)
    before = state_of(model)
    trainer = trainer_for(model, tokenizer, trainable="lora")
    start = state_of(model)
    with trainer.adapt(QUERY):
        moved = changed(model, start)
    assert {name for name in start if ".lora_" in name} == moved
    trainer.release()
    assert_same_state(model, before)


def test_what_cannot_be_chosen_is_refused_and_leaves_no_trace(tokenizer: Any) -> None:
    model = tiny_gpt2()
    modules = dict(model.named_modules())
    for settings, words in [
        ({"trainable": "lora", "lora_targets": ("q_proj",)}, "'q_proj' matches none. There are c_attn, c_fc, c_proj"),
        ({"trainable": "lora", "lora_targets": ("wte",)}, r"'wte' matches transformer\.wte \(Embedding\)"),
        ({"trainable": "lora", "lora_targets": ("ln_f.bias",)}, r"a parameter of shape \(32,\)"),
        ({"trainable": "patterns"}, "trainable_patterns"),
        ({"trainable": "patterns", "trainable_patterns": ("nothing.*",)}, r"nothing\.\*"),
        ({"trainable": "last-layers", "last_layers": 3}, "last_layers"),
    ]:
        with pytest.raises((tttnn.AdaptError, tttnn.ConfigError), match=words):
            trainer_for(model, tokenizer, **settings)
    assert all(modules[name] is module for name, module in model.named_modules())


def test_a_trainer_that_cannot_be_made_takes_its_matrices_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gpt2()
    before, modules = state_of(model), dict(model.named_modules())

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("tttnn.training.engine.WeightArena", full)
    with pytest.raises(MemoryError):
        trainer_for(model, tokenizer, trainable="lora")
    assert all(modules[name] is module for name, module in model.named_modules())
    assert_same_state(model, before)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_compute_what_peft_computes(make: Any, dtype: torch.dtype) -> None:
    """Losses and gradients to the last bit, from the same A and a B that is not zero."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ids = torch.arange(24).reshape(1, 24) * 5 % 257
    ours, theirs = make().to(dtype).eval(), make().to(dtype).eval()
    layers = LowRankLayers(ours, rank=4, alpha=12.0, seed=3).insert()
    names = sorted({name.rpartition(".")[0] for name in layers.names})
    settings = peft.LoraConfig(r=4, lora_alpha=12, target_modules=names, fan_in_fan_out=make is tiny_gpt2)
    peft.inject_adapter_in_model(settings, theirs)
    for name in names:
        for letter in "AB":
            matrix = getattr(ours.get_submodule(name), f"lora_{letter}")
            if letter == "B":
                with torch.no_grad():
                    matrix.copy_(torch.linspace(-0.1, 0.1, matrix.numel()).view_as(matrix))
            theirs.get_submodule(f"{name}.lora_{letter}.default").weight.data = matrix.detach().clone()
    losses = [model(input_ids=ids, labels=ids).loss for model in (ours, theirs)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for name in names:
        for letter in "AB":
            found = getattr(ours.get_submodule(name), f"lora_{letter}").grad
            assert torch.equal(found, theirs.get_submodule(f"{name}.lora_{letter}.default").weight.grad), name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_saved_matrices_load_as_an_adapter(make: Any, tokenizer: Any, tmp_path: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ids = torch.arange(24).reshape(1, 24) * 5 % 257
    trainer = trainer_for(make(), tokenizer, trainable="lora", lora_rank=3, lora_alpha=7.0, learning_rate=1e-2)
    with trainer.adapt(QUERY) as adapted, torch.no_grad():
        adapted.save_adapter(tmp_path / "adapter")
        expected = adapted.model(input_ids=ids).logits
    trainer.release()
    with torch.no_grad():
        base = make().eval()
        before = base(input_ids=ids).logits
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.equal(loaded(input_ids=ids).logits, expected)
    assert not torch.equal(before, expected)


def test_an_adapter_is_written_of_low_rank_training_alone(tokenizer: Any, tmp_path: Any) -> None:
    trainer = trainer_for(tiny_gpt2(), tokenizer)
    with trainer.adapt(QUERY) as adapted, pytest.raises(tttnn.AdaptError, match="trainable='lora', got 'all'"):
        adapted.save_adapter(tmp_path / "adapter")
    trainer.release()


def test_nothing_is_written_into_the_folder_that_the_model_is_of(tokenizer: Any, tmp_path: Path) -> None:
    own = Path(save_model(tmp_path / "own", tiny_gpt2(), tokenizer))
    link = tmp_path / "link"
    link.symlink_to(own)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    trainer = tttnn.TestTimeTrainer.load(own, None, tttnn.AdaptConfig(trainable="lora", precision="float32"))
    with trainer.adapt(QUERY, neighbors=[tttnn.Neighbor(0, 0.1, TEXTS[0])]) as adapted:
        for folder in (own, link):
            for write in (adapted.save_pretrained, adapted.save_adapter):
                with pytest.raises(FileExistsError, match="must not be the folder that the model was loaded from"):
                    write(folder)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    trainer.release()


class UsesWeights(torch.nn.Module):
    """A layer that multiplies by another one's weight without calling it, as Mamba's and attention's do."""

    def __init__(self) -> None:
        super().__init__()
        self.used = torch.nn.Linear(6, 6, bias=False)
        self.called = torch.nn.Linear(6, 6)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.called(states @ self.used.weight.t())
        return out


def test_a_layer_whose_weight_is_used_without_a_call_is_trained_too() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.layers = torch.nn.ModuleList([UsesWeights(), UsesWeights()])
    states = torch.randn(4, 6)
    expected = model.layers[0](states)
    layers = LowRankLayers(model, rank=2, alpha=4.0).insert()
    assert torch.equal(model.layers[0](states), expected)
    assert model.layers[0].used.in_features == 6
    for name in layers.names:
        if name.endswith("lora_B"):
            model.get_parameter(name).data += 0.1
    out = model.layers[0](states)
    out.sum().backward()
    assert model.layers[0].used.lora_A.grad is not None
    merged = layers.merged()
    plain = states @ merged["layers.0.used.weight"].t() @ merged["layers.0.called.weight"].t()
    assert torch.allclose(plain + merged["layers.0.called.bias"], out, atol=1e-5)
    layers.remove()
    assert torch.equal(model.layers[0](states), expected)


def test_an_update_of_a_tied_weight_is_not_merged_in_silence(tokenizer: Any, tmp_path: Any) -> None:
    trainer = trainer_for(tiny_gpt2(), tokenizer, trainable="lora", lora_targets=("lm_head", "c_fc"))
    with trainer.adapt(QUERY) as adapted:
        with pytest.raises(tttnn.AdaptError, match=r"lm_head\.weight .* tied to transformer\.wte\.weight"):
            adapted.save_pretrained(tmp_path / "adapted")
        adapted.save_adapter(tmp_path / "adapter")
    trainer.release()


def test_memory_is_counted_for_what_is_trained() -> None:
    model = tiny_gpt2()
    weights = sum(p.numel() for p in model.parameters())
    assert trained_elements(model, None) == (weights, weights)
    names = trained_names(model, tttnn.AdaptConfig(trainable="last-layers", last_layers=1))
    layer = sum(p.numel() for p in model.transformer.h[1].parameters())
    assert trained_elements(model, names) == (weights, layer)


def test_layers_of_a_deeper_vision_tower_are_not_trained_by_default() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    config = GitConfig(vision_config=vision | {"image_size": 32, "patch_size": 16}, vocab_size=257, **text, **ends)
    model = GitForCausalLM(config)
    assert len(model.git.image_encoder.vision_model.encoder.layers) == 5
    chosen = {name.rpartition(".lora_")[0] for name in LowRankLayers(model, rank=2, alpha=4).names}
    assert {name.split(".layer.")[0] for name in chosen} == {"git.encoder"}
    assert len(chosen) == 2 * 6
    assert last_layers(model, 1) == ["git.encoder.layer.1.*"]
    named = LowRankLayers(model, rank=2, alpha=4, targets=["git.image_encoder.*.q_proj"]).names
    assert len(named) == 2 * 5


def test_settings_a_trainer_was_made_with_cannot_be_replaced(tokenizer: Any) -> None:
    trainer = trainer_for(tiny_gpt2(), tokenizer)
    with pytest.raises(tttnn.ConfigError, match="trainable must be as the trainer was made with"):
        trainer.adapt(QUERY, config=trainer.config.with_(trainable="lora"))
    with pytest.raises(AttributeError):
        trainer.config = trainer.config.with_(trainable="lora")
    with trainer.adapt(QUERY, config=trainer.config.with_(seed=3)) as adapted:
        assert adapted.report.seed == 3
    trainer.release()
    # Its matrices were drawn by the seed.
    drawn = trainer_for(tiny_gpt2(), tokenizer, trainable="lora")
    with pytest.raises(tttnn.ConfigError, match="seed must be as the trainer was made with"):
        drawn.adapt(QUERY, config=drawn.config.with_(seed=3))
    drawn.release()


def test_a_replay_of_low_rank_training_gives_the_same_losses(tokenizer: Any) -> None:
    reports = []
    for round in range(2):
        torch.manual_seed(round)
        trainer = trainer_for(tiny_llama(), tokenizer, trainable="lora", seed=5)
        if reports:
            with trainer.replay(reports[0].to_dict()) as again:
                assert again.report.losses == reports[0].losses
        with trainer.adapt(QUERY) as adapted:
            reports.append(adapted.report)
        trainer.release()
    assert reports[0].losses == reports[1].losses
