"""Mean cross entropy of a linear head without a second copy of its logits.

Knows states, weights and labels. Does not know models, windows or optimizers.

Logits exist once, in the arithmetic of the head, and become their own gradient slice by slice: the idea of fused linear
cross entropy (Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009), in eager torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SLICE = 1 << 22
"""Logits held in float32 at a time (16 MB): few enough to stay in the last-level cache, enough to hide calls."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of ``hidden @ weight.T + bias``, with gradients of the first three.

    Args:
        hidden: (tokens, dim), of one type with weight and bias.
        weight: (vocabulary, dim).
        bias: (vocabulary,), or None.
        labels: (tokens,) int64.

    Returns:
        Scalar float32, nats per token.
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels)  # type: ignore[no-untyped-call]
    return result


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
