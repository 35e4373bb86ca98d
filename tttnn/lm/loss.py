"""The loss of a causal language model: how well it predicts each token from those before it.

Knows models, backbones and heads. Does not know windows, optimizers or where weights live.

It is computed from logits, never by the model's own loss: encoder-decoder families do not shift labels in theirs, and
mixtures of experts may add terms. transformers' own holds logits of a whole window, a float32 copy of them, and their
gradient in float32; for most models `kernels.cross_entropy` needs none of the copies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ..kernels.cross_entropy import linear_cross_entropy
from ..kernels.thread_modes import Gradients
from .modes import eval_mode

_log = logging.getLogger("tttnn")

Loss = Callable[[Tensor], Tensor]
"""Mean loss of a window, (1, n) int64 with n at least 2: a scalar in nats per predicted token, with gradient."""


def loss_of(model: nn.Module) -> Loss:
    """Return how the loss of a model is computed: in less memory where that gives the same number."""
    return SlicedLoss.for_model(model) or LogitsLoss(model)


class LogitsLoss:
    """The loss of any model, from the logits of a whole window."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Return the mean loss of a window; see `Loss`."""
        _require_window(input_ids)
        logits: Tensor = self._model(input_ids=input_ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits[0, :-1].float(), input_ids[0, 1:])


class SlicedLoss:
    """The same number as `LogitsLoss` in less memory, for models whose logits are a linear head on a backbone.

    >>> loss = SlicedLoss.for_model(model) or LogitsLoss(model)   # doctest: +SKIP
    >>> loss(input_ids).backward()
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        self._backbone = backbone
        self._head = head

    @classmethod
    def for_model(cls, model: nn.Module) -> Self | None:
        """Return the loss for a model, or None where its logits are not its head on its backbone's last states.

        Soft caps, scalings and other families' habits are found by comparing logits on a probe of eight tokens, which
        must agree to the last bit; the model's train/eval mode is put back.
        """
        find_backbone = getattr(model, "get_decoder", None)
        find_head = getattr(model, "get_output_embeddings", None)
        if find_backbone is None or find_head is None:
            return None
        backbone, head = find_backbone(), find_head()
        if type(head) is not nn.Linear or not isinstance(backbone, nn.Module) or backbone is model:
            return None
        probe = torch.arange(8, device=head.weight.device).unsqueeze(0) % head.out_features
        try:
            with eval_mode(model), Gradients(False):
                expected = model(input_ids=probe, use_cache=False).logits
                states = head(backbone(input_ids=probe, use_cache=False).last_hidden_state)
        except Exception as error:
            _log.debug("no sliced loss: %s does not run apart from its head (%s)", type(backbone).__name__, error)
            return None
        return cls(backbone, head) if torch.equal(expected, states) else None

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Return the mean loss over a window, scalar float32 in nats per predicted token, with gradient.

        Args:
            input_ids: (1, n) int64, n at least 2.
        """
        _require_window(input_ids)
        hidden = self._backbone(input_ids=input_ids, use_cache=False).last_hidden_state[0, :-1]
        weight, bias = self._head.weight, self._head.bias
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return linear_cross_entropy(
            hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), input_ids[0, 1:]
        )


def _require_window(input_ids: Tensor) -> None:
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < 2:
        raise ValueError(f"input_ids must have shape (1, n) with n at least 2, got {tuple(input_ids.shape)}")
