"""What a captured model's tensors must look like, and the proof that they do: identity, place, version, bytes.

Knows modules, tensors and fingerprints of their bytes. Does not know queries, steps or where else weights may lie.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from operator import attrgetter, is_, setitem
from typing import Any

import torch
from torch import Tensor, nn

import tttnn._core as _core

from ..errors import AdaptError, RestoreError
from .blocks import WeightBlock, run_at_once
from .layout import Captured

_log = logging.getLogger("tttnn")

_VERSION = "_version"
"""torch's count of writes to a tensor: no promised name of it, and it stands here alone."""


_PARAMETERS, _BUFFERS, _MODULES = "_parameters", "_buffers", "_modules"
"""torch's dictionaries of a module's tensors and submodules: no promised names of it either."""


class Slots:
    """Where a model keeps its tensors: every module's parameters and buffers by name, and its submodules."""

    def __init__(self, model: nn.Module) -> None:
        """Note the slots of a model.

        Raises:
            AdaptError: This torch keeps a module's tensors elsewhere.
        """
        if gone := [name for name in (_PARAMETERS, _BUFFERS, _MODULES) if not hasattr(model, name)]:
            raise AdaptError(
                f"torch must keep a module's tensors in {gone[0]}, but {torch.__version__} does not. Install a version "
                "that the README names as tested."
            )
        self.entries = [
            (slots, name, f"{path}.{name}" if path else name, tensor)
            for path, module in model.named_modules()
            for slots in (getattr(module, _PARAMETERS), getattr(module, _BUFFERS))
            for name, tensor in slots.items()
            if tensor is not None
        ]
        """For each tensor the dictionary that holds it, its key in there, its whole name, and itself."""
        self._model_name = type(model).__name__
        # Columns of the entries, so that one C-level pass can read or write them all.
        self._dicts = [slots for slots, _, _, _ in self.entries]
        self._names = [name for _, name, _, _ in self.entries]
        self._tensors = [tensor for _, _, _, tensor in self.entries]
        self._children: list[dict[str, nn.Module | None]] = [getattr(module, _MODULES) for module in model.modules()]
        self._child_lists = list(map(tuple, map(dict.values, self._children)))

    def put_back(self) -> None:
        """Put every tensor back where the model kept it."""
        run_at_once(map(setitem, self._dicts, self._names, self._tensors))

    def check(self) -> None:
        """Raise RestoreError where a slot holds another tensor, or the model other submodules."""
        if not all(map(is_, map(dict.get, self._dicts, self._names), self._tensors)):
            for owner, name, path, tensor in self.entries:
                if owner.get(name) is not tensor:
                    what = "is gone" if owner.get(name) is None else "is another tensor now"
                    raise moved(path, what + " (replaced or re-tied)")
        if list(map(tuple, map(dict.values, self._children))) != self._child_lists:
            raise moved(self._model_name, "has other submodules now")


class Probed:
    """A model's tensors before it is tried and held: its buffers are put back, writes to its weights are found."""

    def __init__(self, model: nn.Module) -> None:
        """Take note of them; buffers are copied."""
        entries = Slots(model).entries
        self._weights = [entry for entry in entries if isinstance(entry[3], nn.Parameter)]
        self._versions = self._now()
        self._buffers = [
            (slots, name, tensor, tensor.detach().clone())
            for slots, name, _, tensor in entries
            if not isinstance(tensor, nn.Parameter) and not tensor.is_meta
        ]

    def _now(self) -> list[int]:
        return [getattr(tensor, _VERSION, 0) for *_, tensor in self._weights]

    @property
    def has_its_weights(self) -> bool:
        """Whether the weights are what they were, as far as torch counts."""
        return self._now() == self._versions and all(
            slots.get(name) is tensor for slots, name, _, tensor in self._weights
        )

    def put_back_buffers(self) -> None:
        """Let every buffer be where and what it was."""
        with torch.no_grad():
            for slots, name, tensor, before in self._buffers:
                slots[name] = tensor
                if not torch.equal(tensor, before):
                    tensor.copy_(before)


class Inspection:
    """What every captured tensor looked like when the arena had moved it, to compare with what it is."""

    def __init__(self, slots: Slots, items: Sequence[Captured], homes: Sequence[Tensor], pristine: WeightBlock) -> None:
        """Take note of captured tensors, each of which lies at its home."""
        self._slots = slots
        self._items = items
        self._tensors = [item.tensor for item in items]
        self._pristine = pristine
        self._pointers = list(map(Tensor.data_ptr, homes))
        self._counts_writes = hasattr(torch.Tensor, _VERSION)
        if not self._counts_writes:
            _log.warning("writes to weights between queries are found by verify() alone: this torch counts none")
        self._versions = self.versions()
        self._dtypes = [item.dtype for item in items]
        self._shapes = [item.shape for item in items]
        self._strides = [item.stride for item in items]
        self._fingerprints = pristine.fingerprints(items)

    def versions(self) -> list[int]:
        """Return torch's count of writes to each tensor; zeros where it has none."""
        return list(map(attrgetter(_VERSION), self._tensors)) if self._counts_writes else [0] * len(self._tensors)

    @property
    def expected_versions(self) -> list[int]:
        """The counts of writes that are right."""
        return self._versions

    def expect(self, versions: list[int]) -> None:
        """Take these counts of writes for right from here on."""
        self._versions = versions

    def check(self, *, at_home: bool) -> None:
        """Compare identity, shape and dtype, and where weights are at home address and version.

        Raises:
            RestoreError: something differs; the message names the parameter or buffer.
        """
        self._compare("dtype", attrgetter("dtype"), self._dtypes)
        self._compare("shape", attrgetter("shape"), self._shapes)
        self._compare("strides", Tensor.stride, self._strides)
        if at_home:
            self._compare("address", Tensor.data_ptr, self._pointers)
            if self._counts_writes:
                self._compare("version", attrgetter(_VERSION), self._versions)
        self._slots.check()

    def _compare(self, what: str, look: Callable[[Tensor], Any], expected: list[Any]) -> None:
        looks = list(map(look, self._tensors))
        if looks == expected:
            return
        for item, now, before in zip(self._items, looks, expected, strict=True):
            if now != before:
                raise moved(item.names[0], f"has {what} {now}, expected {before}")

    def written_at_home(self, versions: list[int]) -> list[Captured]:
        """Return the tensors that lie at their home and were written through torch there."""
        if versions == self._versions:
            return []
        return [
            item
            for item, home, before, now in zip(self._items, self._pointers, self._versions, versions, strict=True)
            if now != before and item.tensor.data_ptr() == home and item.nbytes > 0
        ]

    def require_pristine(self) -> None:
        """Read all bytes of the pristine block; RestoreError where they are not those captured."""
        self._require_same("pristine", self._pristine, self._items)

    def require_restored(self, block: WeightBlock, items: Sequence[Captured]) -> None:
        """Read these tensors' bytes in another block; RestoreError where they are not the pristine ones."""
        self._require_same("restored", block, items)

    def changed(self, block: WeightBlock, items: Sequence[Captured]) -> list[Captured]:
        """Return the tensors whose bytes in another block are not the pristine ones."""
        expected = self._expected
        return [i for i, now in zip(items, block.fingerprints(items), strict=True) if now != expected[id(i)]]

    @property
    def _expected(self) -> dict[int, int]:
        return {id(item): fingerprint for item, fingerprint in zip(self._items, self._fingerprints, strict=True)}

    def _require_same(self, what: str, block: WeightBlock, items: Sequence[Captured]) -> None:
        expected = self._expected
        for item, now in zip(items, block.fingerprints(items), strict=True):
            if now != expected[id(item)]:
                raise RestoreError(
                    f"{item.names[0]}: {what} weights must keep fingerprint {expected[id(item)]:016x}, found "
                    f"{now:016x}: something wrote them behind torch's back. Load the model again and make a new "
                    "WeightArena."
                )

    def digest(self, name_of: Callable[[str], str | None] | None) -> str:
        """Return a digest of names, shapes, dtypes and bytes of the pristine weights; see `WeightArena.digest`."""
        result = hashlib.sha256()
        order = {path: position for position, (_, _, path, _) in enumerate(self._slots.entries)}
        items = sorted(self._items, key=lambda item: (not isinstance(item.tensor, nn.Parameter), order[item.names[0]]))
        for item, fingerprint in zip(items, self._pristine.fingerprints(items), strict=True):
            name = item.names[0] if name_of is None else name_of(item.names[0])
            if name is not None:
                result.update(f"{name} {item.dtype} {tuple(item.shape)} {fingerprint:016x}\n".encode())
        return result.hexdigest()


def moved(name: str, what: str) -> RestoreError:
    """Return the error of a model that was changed between queries."""
    return RestoreError(
        f"{name} must stay as the arena left it, but it {what}: the model was loaded into, moved, converted or "
        "re-tied between queries. Call release() first, then make a new WeightArena."
    )


def require_same_bytes(items: Sequence[Captured], shared: Sequence[int]) -> None:
    """Raise AdaptError where a tensor of the model does not have the shared one's fingerprint."""
    for item, expected in zip(items, shared, strict=True):
        tensor = item.tensor.detach()
        if tensor.numel() == 0:
            continue
        if tensor.stride() != item.stride:
            tensor = torch.empty_strided(item.shape, item.stride, dtype=item.dtype).copy_(tensor)
        flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        fingerprint = _core.fingerprint(flat.numpy(), torch.get_num_threads())
        if fingerprint != expected:
            raise AdaptError(
                f"{item.names[0]} must have the shared weights' fingerprint {expected:016x}, found {fingerprint:016x}. "
                "Load the same model in every process."
            )
