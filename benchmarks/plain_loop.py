"""The rival of a whole query, and what tests compare with: the plain PyTorch loop that the paper's published code runs.

It keeps a copy of the state, trains in float32 with AdamW's default implementation, one step a window, clips the
gradient norm, and loads the copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

LEARNING_RATE = 2e-5
"""The paper's, for GPT-2."""

Answer = TypeVar("Answer")


def plain_step(model: Any, optimizer: torch.optim.Optimizer, ids: Sequence[int]) -> float:
    """Take one step on a window of token ids, the gradient's norm clipped to 1; return the loss before it."""
    window = torch.tensor([ids])
    optimizer.zero_grad()
    loss = model(input_ids=window, labels=window).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def plain_query(
    model: Any, windows: Sequence[Sequence[int]], answer: Callable[[], Answer], *, rate: float = LEARNING_RATE
) -> Answer:
    """Train on windows of token ids, one step each; return what `answer` says then; put the state back."""
    saved = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    for ids in windows:
        plain_step(model, optimizer, ids)
    answered = answer()
    model.load_state_dict(saved)
    return answered
