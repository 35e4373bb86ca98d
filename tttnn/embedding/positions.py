"""How many tokens an encoder can read, and the position of the first: found by letting it read.

Knows that encoders look positions up in tables; does not know their names, nor tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError, UnknownModelError
from .gate import states_of

_LENGTHS = (3, 5, 9)
"""Tokens of the texts of the probe."""

_SECOND = 5e10
"""Tokens times parameters that a processor core multiplies in about a second."""


_DEFAULT = 512
"""Tokens that are read of a text where nothing says how many."""


class Positions(NamedTuple):
    """What an encoder was seen to do with positions."""

    first: int
    """Position id of a text's first token: RoBERTa counts from behind its padding's."""
    limit: int | None
    """Tokens that its tables of positions have room for; None: it looks none up."""


def positions_of(model: nn.Module, ids: list[int], name: str) -> Positions:
    """Return where an encoder begins to count, and how far its tables reach.

    A table of positions is one that is asked for rows that follow each other, beginning at the same row whatever the
    length of the text.

    Args:
        model: An encoder of transformers in eval mode.
        ids: Token ids to read, at least two different ones.
        name: What messages call it.

    Raises:
        UnknownModelError: It cannot read token ids.
    """
    shapes: list[set[tuple[int, int]]] = []
    for length in _LENGTHS:
        with _Lookups(length) as seen:
            states_of(model, [ids[i % len(ids)] for i in range(length)], name)
        shapes.append(seen.tables)
    tables = set.intersection(*shapes)
    if not tables:
        return Positions(0, None)
    first, rows = min(tables, key=lambda table: table[1] - table[0])
    return Positions(first, rows - first)


class _Lookups(TorchFunctionMode):
    """Notes tables of which a forward pass asks for as many rows in a row as a text has tokens."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.tables: set[tuple[int, int]] = set()
        """The first row and how many the table has."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.embedding, nn.functional.embedding) and len(args) > 1:
            weight, indices = args[:2] if func is torch.embedding else args[1::-1]
            rows = indices.reshape(-1)
            if rows.numel() == self.length and torch.equal(rows, torch.arange(self.length).to(rows) + rows[0]):
                self.tables.add((int(rows[0]), len(weight)))
        return func(*args, **(kwargs or {}))


def longest_text(
    model: Any, ids: list[int], stated: int | None, asked: int | None, positions: Positions, name: str
) -> int:
    """Return how many tokens of a text are read, special tokens included: as asked for, or as files and tables allow.

    Args:
        model: An encoder of transformers in eval mode.
        ids: Token ids to read.
        stated: What files say, if anything.
        asked: What the settings say, if anything.
        positions: Of this encoder.
        name: What messages call it.

    Raises:
        ConfigError: More tokens are asked for than the encoder reads.
    """
    known = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 0
    limit = positions.limit if positions.limit is not None else max(known, 0) or None
    if asked is None:
        limits = [int(length) for length in (stated, limit if known > 0 else None) if length and length < 1_000_000]
        wanted = min(limits) if limits else min(_DEFAULT, limit or _DEFAULT)
    else:
        wanted = asked
    read = min(wanted, limit or wanted)
    if positions.limit is None:
        read = _readable(model, ids, read)
    if asked is not None and read < asked:
        raise ConfigError(f"max_length must be at most {read} (the limit of encoder {name!r}), got {asked}")
    return read


def affordable_length(model: nn.Module) -> int:
    """Return how many tokens an encoder reads in about a second on a processor core, and not fewer than a few."""
    return max(32, int(_SECOND / max(1, sum(p.numel() for p in model.parameters()))))


def _readable(model: nn.Module, ids: list[int], limit: int) -> int:
    """Return the most tokens, up to `limit`, that an encoder reads without an error, by trying the longest.

    Where a trial would take much more than a second, or run on a device that an error would leave unusable, `limit` is
    believed.
    """
    believed = limit > affordable_length(model) or next(model.parameters()).device.type != "cpu"
    if believed or _reads(model, ids, limit):
        return limit
    low, high = 1, limit  # it reads `low`, and not `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _reads(model, ids, middle) else (low, middle)
    return low


def _reads(model: nn.Module, ids: list[int], length: int) -> bool:
    try:
        states_of(model, [ids[i % len(ids)] for i in range(length)], "")
    except UnknownModelError:
        return False
    return True
