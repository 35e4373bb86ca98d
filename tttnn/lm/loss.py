"""The loss of a causal language model without a second copy of its logits.

Knows backbones, heads and cross entropy. Does not know windows, optimizers or where weights live.

transformers computes logits of a whole window, a float32 copy of them, and their gradient in float32. Here logits
exist once, in the arithmetic of the model, and become their own gradient slice by slice: the idea of fused linear
cross entropy (Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009), in eager torch.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .modes import eval_mode

_SLICE = 1 << 22
"""Logits held in float32 at a time (16 MB): few enough to stay in the last-level cache, enough to hide calls."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of ``hidden @ weight.T + bias``; logits (tokens, vocabulary) are overwritten by gradients."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """Return the mean loss over tokens, float32 scalar, for hidden (tokens, dim) and labels (tokens,)."""
        logits = torch.nn.functional.linear(hidden, weight, bias)
        tokens, vocabulary = logits.shape
        needs_gradient = any(ctx.needs_input_grad[:3])
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        rows = max(1, _SLICE // vocabulary)
        for begin in range(0, tokens, rows):
            part = logits[begin : begin + rows]
            wanted = labels[begin : begin + rows].unsqueeze(1)
            values = part.float()
            normaliser = values.logsumexp(dim=1, keepdim=True)
            total += (normaliser - values.gather(1, wanted)).sum()
            if needs_gradient:
                values = torch.exp(values.sub_(normaliser), out=values)
                values.scatter_add_(1, wanted, values.new_full(wanted.shape, -1.0))
                part.copy_(values.div_(tokens))
        if needs_gradient:
            ctx.save_for_backward(hidden, weight, logits)
            ctx.has_bias = bias is not None
        return (total / tokens).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return gradients of hidden, weight and bias, each scaled by the upstream scalar."""
        hidden, weight, slopes = ctx.saved_tensors
        of_hidden = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_hidden = (slopes @ weight).mul_(upstream)
        if ctx.needs_input_grad[1]:
            of_weight = (slopes.t() @ hidden).mul_(upstream)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = slopes.sum(dim=0).mul_(upstream)
        return of_hidden, of_weight, of_bias, None


def causal_lm_loss(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the model's own mean loss of predicting each token from those before it.

    Args:
        model: A transformers causal language model.
        input_ids: (1, n) int64, n at least 2.

    Returns:
        Scalar, nats per predicted token, with gradient.
    """
    _require_window(input_ids)
    loss: Tensor = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    return loss


class SlicedLoss:
    """The same number as `causal_lm_loss` in less memory, for models whose logits are a linear head on a backbone.

    >>> loss = SlicedLoss.for_model(model) or partial(causal_lm_loss, model)   # doctest: +SKIP
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
        with eval_mode(model), torch.no_grad():
            expected = model(input_ids=probe, use_cache=False).logits
            found = head(backbone(input_ids=probe, use_cache=False).last_hidden_state)
        return cls(backbone, head) if torch.equal(expected, found) else None

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
        result: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), input_ids[0, 1:]
        )
        return result


def _require_window(input_ids: Tensor) -> None:
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < 2:
        raise ValueError(f"input_ids must have shape (1, n) with n at least 2, got {tuple(input_ids.shape)}")
