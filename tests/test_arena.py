"""The arena: what is put back is bit-identical, and what others change is noticed by name."""

import gc
import os
import signal
import threading
import time

import pytest
import torch
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from tttnn.config import AdaptConfig
from tttnn.errors import AdaptError, ConfigError, RestoreError
from tttnn.training.optimizer import build_optimizer
from tttnn.weights import inspection
from tttnn.weights.arena import WeightArena
from tttnn.weights.trainable import last_layers

VOCABULARY = 61


def tiny_gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=2, n_head=2))


def tiny_llama(*, tied: bool = False) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    )


def tiny_neox() -> nn.Module:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
        )
    )


def tiny_gemma() -> nn.Module:
    return GemmaForCausalLM(
        GemmaConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
        )
    )


MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama, "neox": tiny_neox, "gemma": tiny_gemma}
INPUT = torch.arange(20).reshape(1, 20) * 7 % VOCABULARY


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


def backward(model: nn.Module) -> None:
    model(input_ids=INPUT, labels=INPUT).loss.backward()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name, non-persistent ones too."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and torch.equal(left[name].reshape(-1).view(torch.uint8), right[name].reshape(-1).view(torch.uint8))
        for name in left
    )


def trained_names(arena: WeightArena) -> list[str]:
    return [tensor.name for tensor in arena.trained]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "torch_adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_restore_is_bit_exact(name: str, dtype: torch.dtype, optimizer: str) -> None:
    model = build(name, dtype)
    before = state(model)
    logits = model(input_ids=INPUT).logits
    arena = WeightArena(model)
    assert same(state(model), before)
    assert torch.equal(model(input_ids=INPUT).logits, logits)
    digest = arena.digest()
    steps = build_optimizer(arena, AdaptConfig(optimizer=optimizer))
    for _ in range(3):
        arena.begin()
        for _ in range(2):
            backward(model)
            steps.step(1e-2)
        assert not torch.equal(model(input_ids=INPUT).logits, logits)
        arena.restore()
        arena.check()
        arena.verify()
        assert same(state(model), before)
        assert torch.equal(model(input_ids=INPUT).logits, logits)
        assert arena.digest() == digest
    arena.restore()
    arena.release()
    assert same(state(model), before)


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    model = build("gpt2")
    arena = WeightArena(model)
    assert "transformer.wte.weight" in arena.names
    assert "lm_head.weight" not in arena.names
    elements = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert 2 * 4 * elements <= arena.nbytes <= 2 * (4 * elements + buffers) + 128 * len(arena.names)
    arena.begin()
    backward(model)
    build_optimizer(arena, AdaptConfig()).step(1e-3)
    assert model.lm_head.weight is model.transformer.wte.weight
    arena.restore()
    assert model.lm_head.weight is model.transformer.wte.weight
    arena.release()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_addresses_never_change() -> None:
    model = build("llama")
    arena = WeightArena(model)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    arena.begin()
    backward(model)
    build_optimizer(arena, AdaptConfig()).step(1e-3)
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    arena.restore()
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    assert all(address % 64 == 0 for address in addresses)


def load_into(model: nn.Module) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})


def to_float64(model: nn.Module) -> None:
    model.to(torch.float64)


def retie(model: nn.Module) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def replace(model: nn.Module) -> None:
    model.model.norm.weight = nn.Parameter(model.model.norm.weight.detach().clone())


def rewrite(model: nn.Module) -> None:
    model.model.norm.weight.data = model.model.norm.weight.detach() + 1


def transpose(model: nn.Module) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.t()


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.model.norm.weight.add_(1)


def remove(model: nn.Module) -> None:
    del model.model.norm.weight


def new_module(model: nn.Module) -> None:
    model.model.layers[1].extra = nn.Linear(2, 2)


def new_buffer(model: nn.Module) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 2


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (load_into, "model.embed_tokens.weight"),
        (to_float64, "model.embed_tokens.weight"),
        (retie, "lm_head.weight"),
        (replace, "model.norm.weight"),
        (rewrite, "model.norm.weight"),
        (transpose, "model.layers.0.self_attn.q_proj.weight"),
        (in_place, "model.norm.weight"),
        (remove, "model.norm.weight"),
        (new_module, "LlamaForCausalLM"),
        (new_buffer, "model.rotary_emb.inv_freq"),
    ],
)
def test_a_change_between_queries_is_named(change, name: str) -> None:
    model = build("llama")
    arena = WeightArena(model)
    arena.begin()
    arena.restore()
    change(model)
    with pytest.raises(RestoreError, match=name):
        arena.begin()
    assert not arena.active
    arena.restore()  # nothing was begun: a finally may call it, and it must not touch the user's weights
    with pytest.raises(RestoreError, match=name):
        arena.check()


@pytest.mark.parametrize("change", [load_into, to_float64, retie, replace, rewrite, in_place, new_buffer])
def test_a_change_inside_a_query_is_undone(change) -> None:
    model = build("llama")
    before = state(model)
    arena = WeightArena(model)
    optimizer = build_optimizer(arena, AdaptConfig())
    arena.begin()
    backward(model)
    optimizer.step(1e-3)
    change(model)
    arena.restore()
    assert same(state(model), before)
    arena.check()
    arena.verify()


def data_write(model: nn.Module) -> None:
    model.model.norm.weight.data.add_(1)


@pytest.mark.parametrize("change", [load_into, to_float64, rewrite, in_place, data_write])
def test_a_write_before_the_first_step_is_undone(change) -> None:
    model = build("llama")
    before = state(model)
    arena = WeightArena(model)
    arena.begin()
    change(model)
    arena.restore()
    assert same(state(model), before)
    arena.verify()


def test_torch_counts_writes() -> None:
    tensor = torch.zeros(2)
    before = getattr(tensor, inspection._VERSION)
    tensor.add_(1)
    assert getattr(tensor, inspection._VERSION) == before + 1


@pytest.mark.parametrize("name", ["_PARAMETERS", "_BUFFERS", "_MODULES"])
def test_a_torch_that_keeps_tensors_elsewhere_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    assert isinstance(getattr(model, getattr(inspection, name)), dict)
    monkeypatch.setattr(inspection, name, "_no_such_place")
    with pytest.raises(AdaptError, match="torch must keep a module's tensors in _no_such_place, but"):
        WeightArena(model)


def test_without_the_count_of_writes_verify_alone_finds_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inspection, "_VERSION", "_no_such_count")
    model = build("llama")
    before = state(model)
    arena = WeightArena(model)
    assert "found by verify() alone" in caplog.text
    arena.begin()
    backward(model)
    build_optimizer(arena, AdaptConfig()).step(1e-3)
    in_place(model)
    arena.restore()
    assert same(state(model), before)
    in_place(model)
    with pytest.raises(RestoreError, match=r"model\.norm\.weight"):
        arena.verify()


def test_verify_names_what_data_writes_changed() -> None:
    model = build("llama")
    arena = WeightArena(model)
    model.model.norm.weight.data.add_(1)
    with pytest.raises(RestoreError, match=r"model\.norm\.weight"):
        arena.verify()


def test_gradients_and_flags_are_as_before() -> None:
    model = build("llama")
    backward(model)
    model.model.norm.weight.grad = None
    model.lm_head.weight.requires_grad_(False)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    arena = WeightArena(model, trainable=["model.layers.1.*", "lm_head.weight"])
    assert all(name.startswith(("model.layers.1.", "lm_head.")) for name in trained_names(arena))
    arena.begin()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained_names(arena)
    assert all(p.grad is None for p in model.parameters())
    backward(model)
    build_optimizer(arena, AdaptConfig()).step(1e-3)
    arena.restore()
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]


def test_last_layers_are_trained_and_nothing_else_moves() -> None:
    for name, prefix in (("gpt2", "transformer.h.1."), ("llama", "model.layers.1."), ("neox", "gpt_neox.layers.1.")):
        model = build(name)
        before = state(model)
        arena = WeightArena(model, trainable=last_layers(model, 1))
        assert all(trained.startswith(prefix) for trained in trained_names(arena))
        arena.begin()
        backward(model)
        build_optimizer(arena, AdaptConfig()).step(1e-3)
        changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
        assert changed == trained_names(arena)
        arena.restore()
        assert same(state(model), before)
        with pytest.raises(ConfigError, match="last_layers must be between 1 and 2"):
            last_layers(model, 3)
    with pytest.raises(AdaptError, match="list of layers"):
        last_layers(nn.Linear(2, 2), 1)


def test_a_model_without_gradients_is_trained_whole() -> None:
    model = build("gpt2").requires_grad_(False)
    arena = WeightArena(model)
    assert len(arena.parameters) == len(list(model.parameters()))
    arena.begin()
    backward(model)
    build_optimizer(arena, AdaptConfig()).step(1e-3)
    arena.restore()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_queries_do_not_nest() -> None:
    arena = WeightArena(build("gpt2"))
    assert not arena.active
    arena.begin()
    assert arena.active
    with pytest.raises(AdaptError, match="one query at a time"):
        arena.begin()
    arena.restore()
    assert not arena.active
    arena.release()
    with pytest.raises(AdaptError, match="released"):
        arena.begin()
    arena.release()


def test_buffers_changed_by_the_forward_pass_are_restored() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before = state(model)
    arena = WeightArena(model)
    arena.begin()
    model(torch.randn(8, 4)).sum().backward()
    assert not same(state(model), before)
    arena.restore()
    assert same(state(model), before)
    assert model[1].num_batches_tracked.item() == 0


def test_memory_order_of_weights_is_kept() -> None:
    model = nn.Linear(3, 5)
    model.weight = nn.Parameter(torch.randn(3, 5).t())
    expected = model.weight.detach().clone()
    arena = WeightArena(model)
    assert model.weight.stride() == (1, 5)
    arena.begin()
    model(torch.ones(2, 3)).square().sum().backward()
    build_optimizer(arena, AdaptConfig()).step(1e-3)
    assert model.weight.stride() == (1, 5)
    arena.restore()
    assert torch.equal(model.weight, expected)
    arena.release()
    assert model.weight.stride() == (1, 5)


def test_unfit_models_are_refused() -> None:
    with torch.device("meta"):
        meta = nn.Linear(2, 2)
    with pytest.raises(AdaptError, match=r"weight must hold numbers.*meta"):
        WeightArena(meta)

    sharded = build("gpt2")
    sharded.hf_device_map = {"transformer": 0, "lm_head": "cpu"}
    with pytest.raises(AdaptError, match="one device"):
        WeightArena(sharded)

    quantised = build("gpt2")
    quantised.is_quantized = True
    with pytest.raises(AdaptError, match="quantised"):
        WeightArena(quantised)

    class Packed(nn.Parameter):
        pass

    packed = nn.Linear(2, 2)
    packed.weight = Packed(packed.weight.detach())
    with pytest.raises(AdaptError, match="weight must be a plain tensor, got Packed"):
        WeightArena(packed)

    with torch.inference_mode():
        inference = nn.Linear(2, 2)
    with pytest.raises(AdaptError, match="inference_mode"):
        WeightArena(inference)

    aliased = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    aliased[1].weight.data = aliased[0].weight.data
    with pytest.raises(AdaptError, match=r"1\.weight must have memory of its own"):
        WeightArena(aliased)

    with pytest.raises(AdaptError, match="must have parameters"):
        WeightArena(nn.ReLU())
    with pytest.raises(AdaptError, match=r"'h\.99.*' matches none"):
        WeightArena(build("gpt2"), trainable=["h.99.*"])
    with pytest.raises(ValueError, match="sequence of patterns"):
        WeightArena(build("gpt2"), trainable="lm_head.weight")


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_queries_leave_digest_and_memory_flat() -> None:
    model = build("llama")
    arena = WeightArena(model)
    optimizer = build_optimizer(arena, AdaptConfig())
    digest = arena.digest()
    gradients = [torch.full_like(parameter, 0.01) for parameter in arena.parameters]

    def queries(count: int) -> None:
        for _ in range(count):
            arena.begin()
            for parameter, gradient in zip(arena.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step(1e-2)
            arena.restore()

    queries(100)
    gc.collect()
    before = resident_bytes()
    queries(900)
    gc.collect()
    assert resident_bytes() - before < 4 << 20
    assert arena.digest() == digest
    arena.verify()


def test_an_interrupt_never_leaves_a_half_restored_model() -> None:
    model = build("llama")
    before = state(model)
    arena = WeightArena(model)
    optimizer = build_optimizer(arena, AdaptConfig())
    gradients = [torch.full_like(parameter, 0.01) for parameter in arena.parameters]
    parameters = arena.parameters
    homes = [parameter.data_ptr() for parameter in parameters]
    interrupts = 0
    fired = False

    def interrupt(*_: object) -> None:
        nonlocal fired
        fired = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for trial in range(1000):
            arena.begin()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step(1e-2)
            fired = inside = False
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + trial % 120))
                inside = True
                arena.restore()
                inside = False
                deadline = time.monotonic() + 5
                while not fired and time.monotonic() < deadline:
                    pass
                assert fired
            except KeyboardInterrupt:
                interrupts += inside
                at_home = [p.data_ptr() == home for p, home in zip(parameters, homes, strict=True)]
                assert all(at_home) or not any(at_home)
                # Before its first instruction restore() cannot defend itself: then the query is still open, whole.
                arena.restore()
            assert not arena.active
            assert [parameter.data_ptr() for parameter in parameters] == homes
            if trial % 20 == 0:
                assert same(state(model), before)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupts > 10
    assert same(state(model), before)
    arena.check()


def test_interrupts_from_another_thread_are_survived() -> None:
    model = build("llama")
    before = state(model)
    arena = WeightArena(model)
    optimizer = build_optimizer(arena, AdaptConfig())
    gradients = [torch.full_like(parameter, 0.01) for parameter in arena.parameters]
    armed = False
    interrupts = 0

    def once(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    def send() -> None:
        for _ in range(100):
            stop.wait(0.003)
            signal.raise_signal(signal.SIGUSR1)

    stop = threading.Event()
    sender = threading.Thread(target=send)
    previous = signal.signal(signal.SIGUSR1, once)
    sender.start()
    try:
        while sender.is_alive():
            try:
                armed = True
                arena.begin()
                for parameter, gradient in zip(arena.parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step(1e-2)
                arena.restore()
                armed = False
            except KeyboardInterrupt:
                interrupts += 1
                arena.restore()
            assert not arena.active
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, previous)
    assert interrupts > 20
    assert same(state(model), before)
    arena.check()
    arena.verify()
