"""Encoder: token ids to pooled vectors, in a precision and in batches that were seen to change nothing.

Knows encoders, batches and pooling. Does not know texts, files or names of settings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Precision
from ..kernels.linear import fuse_biases
from ..kernels.pooling import pool, pool_packed
from ..kernels.precision import resolved
from .embed_report import EmbedReport
from .packed import PackedEncoder, packed_offsets
from .padded import PaddedEncoder

_log = logging.getLogger("tttnn")

_ALIKE = 0.98
"""Least cosine of bfloat16 with float32: 8 bits are kept, and layers multiply what is lost."""

_LENGTHS = (17, 1, 5, 17, 9)
"""Tokens of the texts of the probe: one, and two of one length. The longest that the encoder reads stands beside."""


class Encoder:
    """An encoder with its precision and the way its batches run: packed, padded, or of texts of one length.

    The way is found by trying. Where bfloat16 fails or gives other states, float32 is used, with a warning.
    """

    def __init__(
        self,
        model: Any,
        load: Callable[[], Any],
        *,
        device: torch.device | None,
        precision: Precision,
        first_position: int,
        tokens: Sequence[int],
        padding: int,
        longest: int,
    ) -> None:
        """Make it of a model.

        Args:
            model: An encoder of transformers in float32; from here on this object's own.
            load: Returns the same model once more; called where a precision proves wrong.
            device: Where it runs; None: where the model is.
            precision: `auto` as `kernels.precision.resolved` says.
            first_position: Position id of a text's first token.
            tokens: Token ids of ordinary text.
            padding: The token id that fills shorter texts up.
            longest: Tokens of the longest text that is tried.
        """
        self._first_position, self._padding = first_position, padding
        lengths = [longest, *(min(length, longest) for length in _LENGTHS)]
        self._probe = [[tokens[(7 * t + i) % len(tokens)] for t in range(n)] for i, n in enumerate(lengths)]
        self.together: Literal["any", "equal", "none"] = "any"
        """Which texts may stand in one batch."""
        self.packed: PackedEncoder | None = None
        self.precision: Literal["float32", "bfloat16"] = "float32"
        device = device if device is not None else next(model.parameters()).device
        self._choose(model, lambda: load().to(device), resolved(precision, device), pack=True)
        self.dim = self.padded([self._probe[-1]])[0].shape[-1]

    def _choose(
        self, model: Any, load: Callable[[], Any], precision: Literal["float32", "bfloat16"], *, pack: bool
    ) -> None:
        """Choose for a model in float32; where the choice proves wrong, load it again and choose less."""
        self.model = model.eval().requires_grad_(False)
        self.precision = precision
        self.padded = PaddedEncoder(model, self._padding)
        self.packed = PackedEncoder.for_model(model, first_position=self._first_position) if pack else None
        self.together = "any" if self.packed is not None else self.padded.together(self._probe)
        if precision == "float32":
            return
        expected = self.padded.means_alone(self._probe[1:])
        model.to(torch.bfloat16)
        fuse_biases(model)
        means = self.padded.means_alone if self.packed is None else self._packed_means
        if _alike(lambda: means(self._probe[1:]), expected):
            return
        if self.packed is None:
            _log.warning("%s computes in float32: its states in bfloat16 are missing or others", type(model).__name__)
            precision = "float32"
        self._choose(load(), load, precision, pack=pack and self.packed is None)

    def _packed_means(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        assert self.packed is not None
        means: NDArray[np.float32] = self.packed.means(ids).numpy()
        return means

    def vectors(
        self, ids: Sequence[Sequence[int]], pooling: str, normalize: bool, skip: int, report: EmbedReport
    ) -> tuple[NDArray[np.float32], int]:
        """Return the vectors of a batch (texts, dim), and the first text whose vector is not finite, or -1.

        Args:
            ids: Token ids of each text, at least one.
            pooling: "mean" or "cls".
            normalize: Scales vectors to unit length.
            skip: Tokens at the beginning of each text that are not pooled; the last token always is.
            report: Tokens and seconds are added to it.
        """
        lengths = np.array([len(row) for row in ids])
        left_out = np.minimum(skip, lengths - 1)
        rows = np.arange(len(ids))
        out = np.empty((len(ids), self.dim), np.float32)
        report.tokens += int(lengths.sum())
        report.padded_tokens += int(lengths.sum() if self.packed is not None else len(ids) * lengths.max())
        started = time.perf_counter()
        if self.packed is not None:
            states = self.packed(ids)
            encoded = time.perf_counter()
            if skip:
                position = np.concatenate([np.arange(length) for length in lengths])
                states = states[torch.from_numpy(position >= np.repeat(left_out, lengths))]
            bad = pool_packed(states, packed_offsets(lengths - left_out), rows, out, pooling, normalize)
        else:
            hidden, mask = self.padded(ids)
            encoded = time.perf_counter()
            if skip:
                mask = np.ones(hidden.shape[:2], np.uint8) if mask is None else mask.copy()
                mask[np.arange(mask.shape[1]) < left_out[:, None]] = 0
            bad = pool(hidden, mask, rows, out, pooling, normalize)
        report.add_seconds("encode", encoded - started)
        report.add_seconds("pool", time.perf_counter() - encoded)
        return out, bad


def _alike(means: Callable[[], NDArray[np.float32]], expected: NDArray[np.float32]) -> bool:
    """Return whether states in bfloat16 have nearly the direction of those in float32."""
    try:
        found = means()
    except Exception as problem:  # an operator that bfloat16 does not have
        _log.debug("no bfloat16: %s", problem)
        return False
    size = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    # Written so that NaN fails too.
    return bool(((found * expected).sum(1) >= _ALIKE * size).all())
