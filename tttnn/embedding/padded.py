"""PaddedEncoder: an encoder over texts that are padded to the longest, or that need no padding, being of one length.

Knows how transformers' encoders take tokens and masks. Does not know tokenizers, pooling or what the states are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

_ALIKE = 2e-3
"""Most distance of a text's mean state from what it has alone, to the size of all; float32 rounds to far less."""


class PaddedEncoder:
    """Runs an encoder over batches of padded texts.

    >>> encoder = PaddedEncoder(model, padding=0)                    # doctest: +SKIP
    >>> states, mask = encoder([[101, 2023, 102], [101, 102]])       # doctest: +SKIP
    >>> states.shape, mask.tolist()                                  # doctest: +SKIP
    (torch.Size([2, 3, 384]), [[1, 1, 1], [1, 1, 0]])
    """

    def __init__(self, model: Any, padding: int) -> None:
        self._model = model
        self._padding = padding

    def __call__(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, NDArray[np.uint8] | None]:
        """Return the last hidden states (texts, tokens, dim) and the mask of real tokens, None where all are."""
        lengths = np.array([len(row) for row in ids])
        tokens = np.full((len(ids), lengths.max()), self._padding, np.int64)
        for row, values in zip(tokens, ids, strict=True):
            row[: len(values)] = values
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            states: torch.Tensor = self._model(
                input_ids=torch.from_numpy(tokens).to(device),
                attention_mask=torch.from_numpy(real.astype(np.int64)).to(device),
            ).last_hidden_state
        return states, None if real.all() else real.view(np.uint8)

    def together(self, ids: Sequence[Sequence[int]]) -> Literal["any", "equal", "none"]:
        """Return which texts may stand in one batch, so that a text has the states that it has alone.

        any: padding does not matter. equal: it does, as where an encoder mixes tokens without regard to the mask; texts
        of one length need none. none: a text sees the others of its batch.

        Args:
            ids: Token ids of texts to try it with. Some have one length, others not.
        """
        alone = self.means_alone(ids)
        if self._alike(ids, alone):
            return "any"
        lengths = [len(row) for row in ids]
        same = [i for i, length in enumerate(lengths) if lengths.count(length) > 1]
        return "equal" if self._alike([ids[i] for i in same], alone[same]) else "none"

    def means_alone(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return each text's mean state where it is the only one of its batch: (texts, dim)."""
        return np.concatenate([self._means([row]) for row in ids])

    def _alike(self, ids: Sequence[Sequence[int]], expected: NDArray[np.float32]) -> bool:
        try:
            apart = np.linalg.norm(self._means(ids) - expected, axis=1)
        except Exception:  # it reads one text and not several
            return False
        return bool((apart <= _ALIKE * np.linalg.norm(expected, axis=1).max()).all())

    def _means(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        states, mask = self(ids)
        values = states.float().cpu().numpy()
        real = np.ones(values.shape[:2], np.uint8) if mask is None else mask
        means: NDArray[np.float32] = (values * real[..., None]).sum(1) / real.sum(1, keepdims=True)
        return means
