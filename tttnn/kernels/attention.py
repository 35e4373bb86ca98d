"""Attention of bfloat16 on the CPU by the core: causal for a training step, and of packed sequences for an encoder.

Knows how transformers' models look up their attention. Does not know losses, optimizers or where weights live.

torch's flash attention on a CPU is several times slower than bfloat16 matrix products of the same size; the core's is
timed beside it in `benchmarks/bench_attention.py`. Inside a training step, anything but plain causal attention of one
sequence goes to the implementation that the model had.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import tttnn._core as _core

NAME = "tttnn_causal"
"""What transformers calls this attention."""

REPLACED = "sdpa"
"""The implementation that is replaced, and that does what the native one does not."""

_TOLERANCE = 0.05
"""Relative distance between logits with and without: bfloat16 keeps 8 bits, and deep models multiply the rounding.

A wrong mask or a missing soft cap changes logits as a whole.
"""

_PROBE = 80
"""Tokens of the probe: more than a block of the kernel."""

_WITHOUT_MEANING = frozenset({"position_ids", "cache_position", "use_cache", "output_hidden_states", "return_dict"})
"""What models hand on to their attention and no attention function reads."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Return ``softmax(scale * query @ key.T, keys up to the query) @ value``, with gradients.

    Products multiply bfloat16 and add in float32. The same bits for any number of threads.

    Args:
        query: (1, heads, tokens, dim) bfloat16 on the CPU; dim a multiple of 16 from 32 to 256.
        key: (1, kv_heads, tokens, dim) likewise; kv_heads divides heads, and neighboring query heads share one.
        value: As key.
        scale: Above 0; None: ``dim ** -0.5``.

    Returns:
        (1, tokens, heads, dim) bfloat16, contiguous.

    Raises:
        ValueError: A tensor is not as above.
        DeviceError: The processor has no AVX-512 with bfloat16; see `supported`.
    """
    _require(query, key, value)
    used = query.shape[-1] ** -0.5 if scale is None else scale
    result: Tensor = _CausalAttention.apply(query, key, value, used)  # type: ignore[no-untyped-call]
    return result


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Sequence[int], *, scale: float | None = None
) -> Tensor:
    """Return ``softmax(scale * query @ key.T) @ value`` inside each of the sequences that stand one after the other.

    Products multiply bfloat16 and add in float32. The same bits for any number of threads and whatever the other
    sequences are. No gradients.

    Args:
        query: (1, heads, tokens, dim) bfloat16 on the CPU; dim a multiple of 16 from 32 to 256.
        key: (1, kv_heads, tokens, dim) likewise; kv_heads divides heads, and neighboring query heads share one.
        value: As key.
        offsets: Sequence i is the tokens from ``offsets[i]`` to ``offsets[i + 1]``; from 0 to `tokens`.
        scale: Above 0; None: ``dim ** -0.5``.

    Returns:
        (1, tokens, heads, dim) bfloat16, contiguous.

    Raises:
        ValueError: A tensor or the offsets are not as above.
        DeviceError: The processor has no AVX-512 with bfloat16; see `supported`.
    """
    _require(query, key, value)
    _, heads, tokens, dim = query.shape
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != tokens:
        raise ValueError(f"offsets must begin with 0 and end with {tokens} (tokens), got {list(offsets)}")
    query, key, value = _rows(query), _rows(key), _rows(value)
    out = query.new_empty(1, tokens, heads, dim)
    _native().forward_packed(
        (heads, key.shape[1], tokens, dim),
        dim**-0.5 if scale is None else scale,
        offsets,
        _view(query),
        _view(key),
        _view(value),
        _view(out.transpose(1, 2)),
        torch.get_num_threads(),
    )
    return out


def _require(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.device.type != "cpu" or tensor.dtype is not torch.bfloat16:
            raise ValueError(f"{name} must be bfloat16 on cpu, got {tensor.dtype} on {tensor.device}")
        if tensor.dim() != 4 or tensor.shape[0] != 1:
            raise ValueError(f"{name} must have shape (1, heads, tokens, dim), got {tuple(tensor.shape)}")
    _, heads, tokens, dim = query.shape
    if key.shape != value.shape or key.shape[2:] != query.shape[2:] or key.shape[1] < 1 or heads % key.shape[1] != 0:
        raise ValueError(
            f"key and value must have shape (1, a divisor of {heads}, {tokens}, {dim}), "
            f"got {tuple(key.shape)} and {tuple(value.shape)}"
        )


def supported() -> bool:
    """Return whether this processor has the instructions (AVX-512 with bfloat16 products)."""
    return _core.attention_supported()


class NativeAttention:
    """Switches a model's attention to the native one and back.

    >>> attention = NativeAttention.for_model(model)   # doctest: +SKIP
    >>> with attention.enabled():                      # doctest: +SKIP
    ...     model(input_ids=ids, labels=ids).loss.backward()
    """

    def __init__(self, configs: list[Any]) -> None:
        self._configs = configs

    @classmethod
    def for_model(cls, model: nn.Module) -> Self | None:
        """Return the switch for a model, or None where it would not help.

        That is: a processor without the instructions, a model that is not on the CPU or whose attention is not
        transformers' sdpa, and one whose logits on a probe of at most 80 tokens in bfloat16 arithmetic do not change by
        a bit with it (then nothing of the model goes through it), or change by more than 5 % of their length. The
        model's train/eval mode is put back.
        """
        find_embeddings = getattr(model, "get_input_embeddings", None)
        if not supported() or find_embeddings is None or any(p.device.type != "cpu" for p in model.parameters()):
            return None
        configs = list(
            {id(config): config for config in map(config_of, model.modules()) if config is not None}.values()
        )
        if not any(config._attn_implementation == REPLACED for config in configs):
            return None
        register(NAME, _attend)
        made = cls(configs)
        longest = min([_PROBE, *(getattr(config, "max_position_embeddings", None) or _PROBE for config in configs)])
        probe = torch.arange(longest).unsqueeze(0) * 7 % find_embeddings().num_embeddings
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                expected = model(input_ids=probe, use_cache=False).logits
                with made.enabled():
                    found = model(input_ids=probe, use_cache=False).logits
        finally:
            for module, training in modes:
                module.training = training
        distance = (found.double() - expected.double()).norm().item()
        return made if 0.0 < distance <= _TOLERANCE * expected.double().norm().item() else None

    def enabled(self) -> _Switch:
        """Return a context manager inside of which the model attends natively.

        However the block ends, every configuration then names the implementation that it named before.
        """
        return _Switch(self._configs)


class _Switch:
    """One block: what each configuration named before it."""

    def __init__(self, configs: list[Any]) -> None:
        self._before = [(config, config._attn_implementation) for config in configs]

    def __enter__(self) -> None:
        try:
            for config, name in self._before:
                if name == REPLACED:
                    # Not the public setter, which would write into other configurations below this one.
                    config._attn_implementation_internal = NAME
        except BaseException:
            self._put_back()
            raise

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    __exit__ = _core.retried(_leave)

    def _put_back(self) -> None:
        for config, name in self._before:
            config._attn_implementation_internal = name


def config_of(module: nn.Module) -> Any:
    """Return the transformers configuration of a module, None where there is none."""
    config = getattr(module, "config", None)
    return config if hasattr(config, "_attn_implementation_internal") else None


def register(name: str, attend: Callable[..., tuple[Tensor, Tensor | None]]) -> None:
    """Make transformers' models find an attention function by a name, with the masks of `REPLACED`.

    Such a mask is None exactly where causal order, or no order at all, says everything: no padding, no shorter window.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[REPLACED])


def replaced_attention(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Attend by the implementation that was replaced."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    answer: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS[REPLACED](*tensors, **options)
    return answer


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as transformers' attention functions do: natively where that is all that is asked for."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (
        attention_mask is None
        and dropout == 0.0
        and causal is True
        and _only_causal(options, query.shape[2])
        and _shapes_fit(query, key, value, getattr(module, "num_key_value_groups", 1))
        and _is_bfloat16(query, key, value)
        and isinstance(scale, float)
        and 0.0 < scale < math.inf
        and not torch.compiler.is_compiling()
    ):
        wide = (query, key, value)
        query, key, value = (tensor.to(torch.bfloat16) for tensor in wide)
        return causal_attention(query, key, value, scale=scale), None
    return replaced_attention(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
    )


def _only_causal(options: dict[str, Any], tokens: int) -> bool:
    """Return whether no option asks for more than causal attention over `tokens`."""
    for name, value in options.items():
        if value is None or value is False or name in _WITHOUT_MEANING:
            continue
        if name == "sliding_window" and isinstance(value, int) and value >= tokens:
            continue
        return False
    return True


def _shapes_fit(query: Tensor, key: Tensor, value: Tensor, group: int) -> bool:
    batch, heads, tokens, dim = query.shape
    return (
        batch == 1
        and tokens >= 1
        and 32 <= dim <= 256
        and dim % 16 == 0
        and heads == key.shape[1] * group
        and key.shape == value.shape == (1, key.shape[1], tokens, dim)
    )


def _is_bfloat16(*tensors: Tensor) -> bool:
    """Return whether tensors are bfloat16 on the CPU, or would be made so by autocast."""
    cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return all(
        tensor.device.type == "cpu" and (tensor.dtype is torch.bfloat16 or (cast and tensor.dtype is torch.float32))
        for tensor in tensors
    )


@functools.cache
def _native() -> _core.Attention:
    """Return the core's attention of this process, which keeps its scratch memory."""
    return _core.Attention()


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _view(tensor: Tensor) -> tuple[int, int, int]:
    """Return address and strides of (1, heads, tokens, dim)."""
    return tensor.data_ptr(), tensor.stride(1), tensor.stride(2)


class _CausalAttention(torch.autograd.Function):
    """The core's two calls; keeps the output and its log-sum-exp instead of probabilities."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return (1, tokens, heads, dim)."""
        query, key, value = _rows(query), _rows(key), _rows(value)
        _, heads, tokens, dim = query.shape
        sizes = (heads, key.shape[1], tokens, dim)
        out = query.new_empty(1, tokens, heads, dim)
        lse = torch.empty(heads, tokens)
        _native().forward(
            sizes,
            scale,
            _view(query),
            _view(key),
            _view(value),
            _view(out.transpose(1, 2)),
            lse.data_ptr(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.sizes, ctx.scale = sizes, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return gradients of query, key and value, each in the memory order of (1, tokens, heads, dim)."""
        query, key, value, out, lse = ctx.saved_tensors
        heads, kv_heads, tokens, dim = ctx.sizes
        of_out = _rows(of_out)
        of_query = query.new_empty(1, tokens, heads, dim).transpose(1, 2)
        of_key = query.new_empty(1, tokens, kv_heads, dim).transpose(1, 2)
        of_value = query.new_empty(1, tokens, kv_heads, dim).transpose(1, 2)
        _native().backward(
            ctx.sizes,
            ctx.scale,
            _view(query),
            _view(key),
            _view(value),
            _view(out.transpose(1, 2)),
            lse.data_ptr(),
            _view(of_out.transpose(1, 2)),
            _view(of_query),
            _view(of_key),
            _view(of_value),
            torch.get_num_threads(),
        )
        return of_query, of_key, of_value, None
