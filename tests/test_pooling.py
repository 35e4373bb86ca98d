"""Native pooling equals plain PyTorch and its own reference loop, for each dtype and SIMD level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tttnn import _core
from tttnn.errors import DeviceError

LEVELS = ["baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4"]
# Float32 sums of at most 64 values of size 1: a few roundings of 6e-8 each. The bfloat16 inputs are exact in float32.
TOLERANCE = 2e-6


def usable_levels() -> list[str]:
    here = _core.build_info()["simd"]
    return LEVELS[: LEVELS.index(here) + 1] if here in LEVELS else ["baseline"]


def states(batch: int, tokens: int, dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, tokens, dim, generator=generator).to(dtype)
    lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
    return hidden, torch.arange(tokens) < lengths[:, None]


def as_array(hidden: torch.Tensor) -> np.ndarray:
    return hidden.view(torch.uint16).numpy() if hidden.dtype == torch.bfloat16 else hidden.numpy()


def plain(hidden: torch.Tensor, mask: torch.Tensor, pooling: str, normalize: bool) -> np.ndarray:
    hidden = hidden.float()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    vectors = hidden[:, 0] if pooling == "cls" else mean
    return (torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors).numpy()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(st.integers(1, 5), st.integers(1, 64), st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_equals_pytorch(dtype: torch.dtype, pooling: str, normalize: bool, batch: int, tokens: int, dim: int) -> None:
    hidden, mask = states(batch, tokens, dim, dtype)
    rows = np.random.default_rng(0).permutation(batch + 2)[:batch].astype(np.int64)
    out = np.full((batch + 2, dim), 7.0, np.float32)
    bytes_of_mask = mask.numpy().view(np.uint8)
    assert _core.pool(as_array(hidden), bytes_of_mask, rows, out, pooling=pooling, normalize=normalize) == -1
    expected = plain(hidden, mask, pooling, normalize)
    np.testing.assert_allclose(out[rows], expected, atol=TOLERANCE, rtol=TOLERANCE)
    reference = np.empty_like(out)
    _core.pool_reference(as_array(hidden), bytes_of_mask, rows, reference, pooling=pooling, normalize=normalize)
    np.testing.assert_allclose(out[rows], reference[rows], atol=TOLERANCE, rtol=TOLERANCE)
    untouched = np.setdiff1d(np.arange(batch + 2), rows)
    assert (out[untouched] == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_level_and_thread_count_gives_the_same_bits(dtype: torch.dtype) -> None:
    hidden, mask = states(9, 70, 387, dtype)
    rows = np.arange(9)
    results = []
    for level in usable_levels():
        for threads in (1, 2):
            out = np.empty((9, 387), np.float32)
            bytes_of_mask = mask.numpy().view(np.uint8)
            _core.pool(
                as_array(hidden), bytes_of_mask, rows, out, pooling="mean", normalize=True, threads=threads, level=level
            )
            results.append(out.tobytes())
    assert len(set(results)) == 1


def test_no_mask_means_all_tokens() -> None:
    hidden, _ = states(3, 5, 8, torch.float32)
    out = np.empty((3, 8), np.float32)
    _core.pool(hidden.numpy(), None, np.arange(3), out, pooling="mean", normalize=False)
    np.testing.assert_allclose(out, hidden.mean(1).numpy(), atol=TOLERANCE)


def test_padding_is_never_read() -> None:
    hidden, mask = states(4, 20, 16, torch.float32)
    spoiled = hidden.clone()
    spoiled[~mask] = float("nan")
    out = np.empty((2, 4, 16), np.float32)
    for i, states_ in enumerate((hidden, spoiled)):
        bad = _core.pool(
            states_.numpy(), mask.numpy().view(np.uint8), np.arange(4), out[i], pooling="mean", normalize=True
        )
        assert bad == -1
    assert out[0].tobytes() == out[1].tobytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_vector_that_is_not_finite_is_reported(value: float, normalize: bool) -> None:
    hidden = torch.ones(6, 4, 40)
    hidden[5, 3, 39] = value
    hidden[3, 0, 0] = value
    out = np.empty((6, 40), np.float32)
    assert _core.pool(hidden.numpy(), None, np.arange(6), out, pooling="mean", normalize=normalize) == 3


def test_a_row_without_tokens_is_zero_and_extremes_stay_finite() -> None:
    hidden = torch.full((2, 2, 20), 1e-30)
    out = np.empty((2, 20), np.float32)
    mask = np.array([[0, 0], [1, 1]], np.uint8)
    assert _core.pool(hidden.numpy(), mask, np.arange(2), out, pooling="mean", normalize=True) == -1
    assert (out[0] == 0).all()
    assert np.isfinite(out).all()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_packed_texts_have_the_bits_that_each_has_alone(
    dtype: torch.dtype, pooling: str, lengths: list[int], dim: int
) -> None:
    hidden, _ = states(1, sum(lengths) + 1, dim, dtype)
    packed = as_array(hidden)[0, : sum(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.random.default_rng(0).permutation(len(lengths) + 2)[: len(lengths)].astype(np.int64)
    out = np.full((len(lengths) + 2, dim), 7.0, np.float32)
    alone = out.copy()
    for level in usable_levels():
        options = {"pooling": pooling, "normalize": True, "level": level}
        assert _core.pool_packed(packed, offsets, rows, out, **options) == -1
        for i, row in enumerate(rows):
            text = packed[None, offsets[i] : offsets[i + 1]]
            _core.pool(text, None, np.array([row]), alone, **options)
        assert out.tobytes() == alone.tobytes()


def test_the_first_packed_text_that_is_not_finite_is_reported() -> None:
    hidden = np.ones((9, 40), np.float32)
    hidden[[4, 8], 7] = np.nan
    out = np.empty((4, 40), np.float32)
    options = {"pooling": "mean", "normalize": True}
    assert _core.pool_packed(hidden, np.array([0, 2, 4, 6, 9]), np.arange(4), out, **options) == 2
    # A state of the next text is none of the last one's.
    assert _core.pool_packed(hidden, np.array([0, 2, 4]), np.arange(2), out, **options) == -1


def test_wrong_packed_shapes_are_refused() -> None:
    hidden = np.zeros((5, 4), np.float32)
    out = np.zeros((2, 4), np.float32)
    options = {"pooling": "mean", "normalize": True}
    for offsets in ([0, 3, 6], [0, 3, 2], [-1, 3, 5]):
        with pytest.raises(ValueError, match="offsets must not fall and be between 0 and 5"):
            _core.pool_packed(hidden, np.array(offsets), np.arange(2), out, **options)
    with pytest.raises(ValueError, match="offsets must be"):
        _core.pool_packed(hidden, np.empty(0, np.int64), np.arange(0), out, **options)
    with pytest.raises(ValueError, match="rows must be"):
        _core.pool_packed(hidden, np.array([0, 5]), np.arange(2), out, **options)
    with pytest.raises(IndexError, match="row must be between 0 and 1, got 2"):
        _core.pool_packed(hidden, np.array([0, 3, 5]), np.array([0, 2]), out, **options)
    with pytest.raises(ValueError, match="hidden must be contiguous"):
        _core.pool_packed(hidden[None], np.array([0, 5]), np.arange(1), out, **options)


def test_wrong_shapes_are_refused() -> None:
    hidden = np.zeros((2, 3, 4), np.float32)
    out = np.zeros((2, 4), np.float32)
    options = {"pooling": "mean", "normalize": True}
    with pytest.raises(ValueError, match="mask must be"):
        _core.pool(hidden, np.ones((2, 4), np.uint8), np.arange(2), out, **options)
    with pytest.raises(ValueError, match="rows must be"):
        _core.pool(hidden, None, np.arange(3), out, **options)
    with pytest.raises(IndexError, match="row must be between 0 and 1, got 2"):
        _core.pool(hidden, None, np.array([0, 2]), out, **options)
    with pytest.raises(ValueError, match="out must be"):
        _core.pool(hidden, None, np.arange(2), np.zeros((2, 5), np.float32), **options)
    with pytest.raises(ValueError, match="hidden must be"):
        _core.pool(hidden.astype(np.float64), None, np.arange(2), out, **options)
    with pytest.raises(ValueError, match="pooling must be"):
        _core.pool(hidden, None, np.arange(2), out, pooling="max", normalize=True)


@pytest.mark.skipif(_core.build_info()["cuda"], reason="built with CUDA")
def test_without_cuda_the_device_kernel_says_so() -> None:
    with pytest.raises(DeviceError, match="device must be cpu"):
        _core.pool_cuda(
            0,
            bfloat16=False,
            batch=1,
            tokens=1,
            dim=1,
            mask=0,
            rows=0,
            out=0,
            bad=0,
            pooling="mean",
            normalize=True,
            stream=0,
        )
