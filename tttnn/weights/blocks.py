"""Blocks of memory that hold a model's weights: the arena's own, and copies in bfloat16.

Knows memory and devices; does not know queries, nor which block a model uses when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

import tttnn._core as _core

from .layout import Captured, aligned
from .shared_weights import SharedWeights


def run_at_once(calls: Iterable[Any]) -> None:
    """Exhaust an iterator in one C-level pass: Python handles signals between bytecodes, so Ctrl-C cannot cut it."""
    deque(calls, maxlen=0)


class WeightBlock:
    """One block on the model's device: from the core on CPU, a torch tensor elsewhere (the core allocates no device
    memory); or a block that other processes read too.
    """

    def __init__(self, nbytes: int, device: torch.device, shared: SharedWeights | None = None) -> None:
        self.nbytes = nbytes
        self.host = (_core.Block(nbytes) if shared is None else shared.block()) if device.type == "cpu" else None
        self.flat = torch.zeros(nbytes, dtype=torch.uint8, device=device) if self.host is None else None

    def view(self, item: Captured) -> Tensor:
        """Return the item's tensor in this block; on CPU with a storage of its own, as a plain tensor has."""
        size = item.nbytes // item.dtype.itemsize
        if size == 0:
            device = None if self.flat is None else self.flat.device
            return torch.empty(item.shape, dtype=item.dtype, device=device)
        if self.host is not None:
            flat = torch.frombuffer(self.host, dtype=item.dtype, count=size, offset=item.offset)
            return flat.as_strided(item.shape, item.stride)
        assert self.flat is not None
        flat = self.flat[item.offset : item.offset + item.nbytes].view(item.dtype)
        return flat.as_strided(item.shape, item.stride, flat.storage_offset())

    def copy_from(self, source: WeightBlock, items: Sequence[Captured]) -> None:
        """Copy these items' bytes from another block, where they lie at the same offsets."""
        if self.host is not None and source.host is not None:
            _core.copy_spans(
                self.host, source.host, [i.offset for i in items], [i.nbytes for i in items], torch.get_num_threads()
            )
            return
        assert self.flat is not None
        assert source.flat is not None
        if self.flat.device.type == "cuda" and _core.build_info()["cuda"]:
            _core.copy_spans_cuda(
                self.flat.data_ptr(),
                source.flat.data_ptr(),
                [i.offset for i in items],
                [min(aligned(i.nbytes), self.nbytes - i.offset) for i in items],  # padding too: neighbors then touch
                limit=min(self.nbytes, source.nbytes),
                device=self.flat.device.index,
                stream=torch.cuda.current_stream(self.flat.device).cuda_stream,
            )
            return
        for item in items:
            self.view(item).copy_(source.view(item))

    def fingerprints(self, items: Sequence[Captured]) -> list[int]:
        """Return one 64-bit fingerprint per item."""
        block = self.host
        if block is None:
            assert self.flat is not None
            block = _core.Block(self.nbytes)
            torch.frombuffer(block, dtype=torch.uint8, count=self.nbytes).copy_(self.flat)
        return _core.fingerprint_spans(
            block, [i.offset for i in items], [i.nbytes for i in items], torch.get_num_threads()
        )


class RoundedWeights:
    """bfloat16 copies of all float32 parameters, and a second one of the trainable ones, which the optimizer writes."""

    def __init__(
        self, items: Sequence[Captured], homes: Sequence[Tensor], pristine: WeightBlock, device: torch.device
    ) -> None:
        """Round what the pristine block holds.

        Args:
            items: Everything captured.
            homes: Where each of them lies between queries.
            pristine: The block that holds their bytes.
            device: Of the copies.
        """
        self._items = [
            replace(item, offset=0, dtype=torch.bfloat16, nbytes=item.nbytes // 2)
            for item in items
            if item.kind != "buffer" and item.dtype is torch.float32
        ]
        ends = [0]
        for i, item in enumerate(self._items):  # trainable ones come first
            self._items[i] = replace(item, offset=ends[-1])
            ends.append(aligned(ends[-1] + item.nbytes))
        trainable = sum(item.kind == "trainable" for item in self._items)
        self.blocks = WeightBlock(ends[-1], device), WeightBlock(ends[trainable], device)
        self._tensors = [item.tensor for item in self._items]
        self._pristine = [self.blocks[0].view(item) for item in self._items]
        self._trained = [self.blocks[1].view(item) for item in self._items[:trainable]]
        captured = {id(item.tensor): item for item in items}
        home_of = {id(item.tensor): home for item, home in zip(items, homes, strict=True)}
        self._homes = [home_of[id(tensor)] for tensor in self._tensors]
        for item, view in zip(self._items, self._pristine, strict=True):
            view.copy_(pristine.view(captured[id(item.tensor)]))
        self._addresses = {
            id(item.tensor): view.data_ptr() for item, view in zip(self._items, self._trained, strict=False)
        }

    def address(self, item: Captured) -> int:
        """Return the address of a trainable tensor's copy; 0 where it has none."""
        return self._addresses.get(id(item.tensor), 0)

    def write(self, item: Captured, values: Tensor) -> None:
        """Write a trainable tensor's copy, where it has one."""
        for tensor, view in zip(self._tensors, self._trained, strict=False):
            if tensor is item.tensor:
                view.copy_(values)

    def use(self, trainable: Sequence[Captured], written: Sequence[bool]) -> None:
        """Point all parameters at their copies: those that no step has written yet at the pristine ones."""
        stepped = {id(item.tensor) for item, was in zip(trainable, written, strict=True) if was}
        views = list(self._pristine)
        for i, view in enumerate(self._trained):
            if id(self._tensors[i]) in stepped:
                views[i] = view
        run_at_once(map(setattr, self._tensors, repeat("data"), views))

    def leave(self) -> None:
        """Point all parameters at their homes; where steps have moved weights, the caller points there afterwards."""
        run_at_once(map(setattr, self._tensors, repeat("data"), self._homes))
