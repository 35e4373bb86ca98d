"""WeightArena: a model's weights re-homed in one block of memory, changed for one query, and put back bit for bit.

Knows tensors, memory and where a model keeps its parameters. Does not know training: an optimizer asks the arena where
weights lie and says which it has trained; nothing here computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter, is_not

import torch
from torch import Tensor, nn

import tttnn._core as _core

from ..errors import AdaptError, RestoreError
from ..undone import UndoneBlock
from .blocks import RoundedWeights, WeightBlock, run_at_once
from .inspection import Inspection, Slots, require_same_bytes
from .layout import Captured, aligned, lay_out, refuse_unfit
from .places import Places
from .shared_weights import SharedTensor, SharedWeights


@dataclass(frozen=True)
class TrainedTensor:
    """What an optimizer has to know of a trainable tensor beside where its weights are.

    Attributes:
        name: its first.
        size: values.
        dtype: of its weights.
        rounded: address of its copy in bfloat16; 0 where it has none.
    """

    name: str
    size: int
    dtype: torch.dtype
    rounded: int


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy of an arena's trained weights, made and taken back by that arena alone."""

    memory: WeightBlock

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return self.memory.nbytes


class TrainingWeights(UndoneBlock[None]):
    """A block inside of which a model computes with rounded weights; made by `WeightArena.training_weights`."""

    def __init__(self, arena: WeightArena) -> None:
        self._arena = arena

    def _enter(self) -> None:
        self._arena.use_rounded()

    def undo(self) -> None:
        """Let the model compute with the exact weights."""
        self._arena.use_exact()


class WeightArena:
    """Hold a model's weights so that they can be changed for one query and put back exactly.

    Parameters and buffers move into one aligned block, the *pristine* block; tied weights are stored once. Between
    queries the model is what it was, only its memory has moved. A query is ``begin()``, optimizer steps, ``restore()``:

    >>> arena = WeightArena(model)                       # doctest: +SKIP
    >>> optimizer = build_optimizer(arena, AdaptConfig())
    >>> arena.begin()
    >>> try:
    ...     loss(model).backward()
    ...     optimizer.step(1e-4)
    ... finally:
    ...     arena.restore()

    Trainable weights and buffers live in a second, *working* block, and are copied back from the pristine one: whatever
    wrote them inside a query, a step or the caller, through ``.data`` too, is undone. Between queries nobody but the
    arena may write the weights: every way through torch is noticed by the next ``begin()``, ``.data`` writes by
    ``verify()``.

    With ``keeps_best`` there is an *other* working block: after `keep` the weights of that moment stay where they are,
    and the next step writes the block that is free. Without it addresses never change. With ``rounded`` every float32
    parameter has a copy in bfloat16 that the model computes with inside `training_weights`, so that no product has to
    round its weights first.

    Not thread-safe: one query at a time, from one thread at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        trainable: Sequence[str] | None = None,
        keeps_best: bool = False,
        rounded: bool = False,
        shared: SharedWeights | None = None,
    ) -> None:
        """Move the model's weights into the arena.

        Args:
            model: A model on one device, not quantised or sharded.
            trainable: Patterns (``fnmatch``) of names of parameters to train; a tied parameter answers to each of its
                names. None: those that require gradients, or all where none does.
            keeps_best: Make room for `keep`: as many bytes again as the trainable weights have.
            rounded: Make room for `training_weights`: two bytes for each float32 weight, and for each trainable one.
            shared: Weights that another arena shared: they become the pristine block, and the model's own are freed.
                The model must hold the same bytes.

        Raises:
            AdaptError: The model cannot be held, no parameter is trainable, or the model is not the shared one; the
                message names the tensor that differs.
        """
        refuse_unfit(model)
        self._model = model
        self._released = False
        self._active = False
        self._generation = 0
        self._saved: tuple[list[bool], list[Tensor | None]] | None = None
        self._closing: tuple[list[int], str | None, list[Captured]] | None = None
        self._damaged: str | None = None  # a tensor whose pristine bytes were written

        self._slots = Slots(model)
        self._items = lay_out(self._slots.entries, trainable)
        self._trainable = [item for item in self._items if item.kind == "trainable"]
        self._parameters = [item.tensor for item in self._items if isinstance(item.tensor, nn.Parameter)]
        self._trained_flags = [i.kind == "trainable" for i in self._items if isinstance(i.tensor, nn.Parameter)]
        self._copied = [item for item in self._items if item.kind != "frozen" and item.nbytes > 0]

        end = aligned(max((item.offset + item.nbytes for item in self._items), default=0))
        working_end = max((i.offset + i.nbytes for i in self._items if i.kind != "frozen"), default=0)
        device = self._items[0].tensor.device
        if shared is not None:
            if device.type != "cpu":
                raise AdaptError(f"model must be on cpu to use shared weights, got {device}. Leave out shared.")
            shared.require_layout(self._describe())
        self._pristine = WeightBlock(end, device, shared)
        if shared is not None:
            require_same_bytes(self._items, self._pristine.fingerprints(self._items))
        self._working = WeightBlock(aligned(working_end), device)
        trainable_end = max((i.offset + i.nbytes for i in self._trainable), default=0)
        self._other = WeightBlock(aligned(trainable_end), device) if keeps_best else None

        of_steps = [block for block in (self._working, self._other) if block is not None]
        self.places = Places([[block.view(item) for block in of_steps] for item in self._trainable])
        """Where the query's weights are now; the optimizer writes at its addresses and says so by `point_at`."""
        self._homes = self._move_in(fill=shared is None)
        self._rounded = RoundedWeights(self._items, self._homes, self._pristine, device) if rounded else None
        self._training = False
        blocks = (self._pristine, self._working, self._other, *(self._rounded.blocks if self._rounded else ()))
        self.nbytes = sum(block.nbytes for block in blocks if block is not None)
        """Bytes of all blocks."""
        self._tensors = [item.tensor for item in self._items]
        self._inspection = Inspection(self._slots, self._items, self._homes, self._pristine)

    def _move_in(self, *, fill: bool) -> list[Tensor]:
        """Copy every tensor into the pristine block, unless it is there, and point it at its home; return the homes."""
        homes = []
        for item in self._items:
            pristine = self._pristine.view(item)
            if fill:
                pristine.copy_(item.tensor.detach())
            home = pristine
            if item.kind != "frozen":
                home = self._working.view(item)
                home.copy_(pristine)
            homes.append(home)
            # One at a time, so that the memory it leaves is free before the next is copied.
            item.tensor.data = home
        return homes

    @property
    def names(self) -> list[str]:
        """Names of everything captured, parameters and buffers; the first name of what is tied."""
        return [item.names[0] for item in self._items]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [item.tensor for item in self._trainable if isinstance(item.tensor, nn.Parameter)]

    @property
    def trained(self) -> list[TrainedTensor]:
        """What is trained, in the order of `parameters`."""
        return [
            TrainedTensor(
                name=item.names[0],
                size=item.tensor.numel(),
                dtype=item.dtype,
                rounded=self._rounded.address(item) if self._rounded is not None else 0,
            )
            for item in self._trainable
        ]

    @property
    def device(self) -> torch.device:
        """The device that holds both blocks."""
        return self._items[0].tensor.device

    @property
    def active(self) -> bool:
        """Whether a query is open."""
        return self._active

    @property
    def generation(self) -> int:
        """The number of queries begun; an optimizer sees by it that weights are fresh."""
        return self._generation

    @property
    def rounded(self) -> bool:
        """Whether there are copies in bfloat16 to train with."""
        return self._rounded is not None

    def begin(self) -> None:
        """Open a query: check the model, set aside gradients and ``requires_grad``, and let weights be trained.

        Raises:
            AdaptError: A query is open already, or the arena was released.
            RestoreError: The model was changed since the last query, or pristine weights were written inside an earlier
                one; the message names the tensor.
        """
        self._require_held()
        if self._damaged is not None:
            raise _written_inside(self._damaged)
        if self._active:
            raise AdaptError("one query at a time: begin() was called while another query is open. Call restore().")
        self._inspection.check(at_home=True)
        saved = (
            list(map(attrgetter("requires_grad"), self._parameters)),
            list(map(attrgetter("grad"), self._parameters)),
        )
        self._saved = saved
        self._closing = None
        self._generation += 1
        self.places.begin()
        # From here on restore() undoes everything, wherever an interrupt falls.
        self._active = True
        run_at_once(map(setattr, self._parameters, repeat("grad"), repeat(None)))
        if saved[0] != self._trained_flags:
            run_at_once(map(setattr, self._parameters, repeat("requires_grad"), self._trained_flags))

    def point_at(self, places: Sequence[int | None]) -> None:
        """Say where trainable weights were written, and point the model there.

        Args:
            places: For each of `parameters`, as in `Places`; None where it was left alone.
        """
        self.places.wrote(places)
        if not self._training:
            self._point()

    def _point(self) -> None:
        """Point trainable parameters at their weights of now."""
        if self._other is None and self._rounded is None:
            return  # they never left
        run_at_once(map(setattr, map(attrgetter("tensor"), self._trainable), repeat("data"), self.places.views()))

    def training_weights(self) -> TrainingWeights:
        """Let the model compute with weights rounded to bfloat16, inside the block; gradients are bfloat16 too.

        Does nothing in an arena without ``rounded``. The optimizer must write the rounded weights with each step.
        """
        return TrainingWeights(self)

    def use_rounded(self) -> None:
        """Point all parameters at their rounded copies, those of now; in an arena with ``rounded`` alone."""
        if self._rounded is not None:
            self._training = True
            self._rounded.use(self._trainable, self.places.written)

    def use_exact(self) -> None:
        """Point all parameters at the weights of now themselves; undoes `use_rounded` wherever that was interrupted."""
        if self._rounded is not None and self._training:
            self._rounded.leave()
            self._point()
            self._training = False

    def keep(self) -> None:
        """Remember the weights of now; the next step leaves them as they are. Copies nothing.

        Raises:
            AdaptError: No query is open, or the arena was made without ``keeps_best``.
        """
        self._require_open("keep")
        if self._other is None:
            raise AdaptError("the arena must be made with keeps_best=True to keep weights, got False.")
        self.places.keep()

    def use_kept(self) -> None:
        """Point the model at the weights of the last `keep` in this query; at a copy of the pristine ones without one.

        No step may follow in this query.

        Raises:
            AdaptError: No query is open.
        """
        self._require_open("use_kept")
        if not self.places.return_to_kept():
            self._working.copy_from(self._pristine, [item for item in self._trainable if item.nbytes > 0])
            self.places.begin()
        self._point()

    def copy_to_working(self) -> None:
        """Make the weights of now ready to be written in place: for optimizers that work on parameters.

        Copies those that are kept to the place that is free.
        """
        places = self.places.next()
        self.places.copy(places)
        self.point_at(places)

    def begin_writing(self, numbers: Sequence[int]) -> None:
        """Make room for other weights of some of `parameters`, which `write` then gives them.

        Raises:
            AdaptError: No query is open.
        """
        self._require_open("begin_writing")
        chosen = set(numbers)
        places = [
            next_ if number in chosen else now
            for number, (next_, now) in enumerate(zip(self.places.next(), self.places.now, strict=True))
        ]
        self.places.copy(places)
        self.point_at([place if number in chosen else None for number, place in enumerate(places)])

    def write(self, number: int, values: Tensor) -> None:
        """Give one of `parameters` other weights for the rest of the query, and its rounded copy too.

        Args:
            number: Its place in `parameters`.
            values: In its shape.

        Raises:
            AdaptError: It was not given to `begin_writing`, and no step wrote it, or no query is open.
        """
        self._require_open("write")
        if not self.places.written[number]:
            raise AdaptError(f"{self._trainable[number].names[0]} must be given to begin_writing() to be written")
        self.places.view(number).copy_(values)
        if self._rounded is not None:
            self._rounded.write(self._trainable[number], values)

    def numbers_of(self, names: Sequence[str]) -> list[int]:
        """Return the places in `parameters` of trained parameters, by any of their names.

        Raises:
            AdaptError: One of them is not trained, or there is none of the name.
        """
        known = {name: number for number, item in enumerate(self._trainable) for name in item.names}
        missing = [name for name in names if name not in known]
        if missing:
            raise AdaptError(f"{missing[0]} must be a trained parameter of the model to be changed, and is not")
        return [known[name] for name in names]

    @property
    def is_untouched(self) -> bool:
        """Whether torch counted no write to anything since the last query."""
        return self._inspection.versions() == self._inspection.expected_versions

    def put_back_written(self) -> bool:
        """Put back, between queries, what a pass wrote or replaced: some architectures write buffers or weights.

        Returns:
            Whether all of it is what it was: not inside a query, where `restore` puts back, nor where weights that are
            not trained were written, of which there is no other copy.
        """
        if self._active or self._released:
            return False
        versions, expected = self._inspection.versions(), self._inspection.expected_versions
        self._slots.put_back()
        if versions == expected:
            return True
        written = [item for item, now, before in zip(self._items, versions, expected, strict=True) if now != before]
        if any(item.kind == "frozen" for item in written):
            return False
        self._working.copy_from(self._pristine, [item for item in written if item.nbytes > 0])
        self._inspection.expect(versions)
        return True

    def restore(self) -> None:
        """Close the query: weights, buffers, gradients and ``requires_grad`` are what they were before `begin`.

        Does nothing when no query is open. Interrupted by Ctrl-C, it finishes first and then raises.

        Raises:
            RestoreError: A parameter that is not trained was written inside the query; the message names it.
        """
        self._close()

    def _put_back(self) -> None:
        if not self._active:
            return
        self._training = False
        if self._closing is None:
            versions = self._inspection.versions()
            # Kept until the next query: after an interrupt tensors may be home already, which says nothing then.
            self._closing = versions, self._written_pristine(versions), self._to_copy(versions)
        versions, written, back = self._closing
        self._damaged = self._damaged or written
        self._inspection.expect(versions)  # restoring writes none: re-pointing and the core's copies do not count
        run_at_once(map(setattr, self._parameters, repeat("grad"), repeat(None)))
        self._slots.put_back()
        run_at_once(map(setattr, self._tensors, repeat("data"), self._homes))
        if back:
            self._working.copy_from(self._pristine, back)
        if self._saved is not None:
            flags, gradients = self._saved
            if list(map(attrgetter("requires_grad"), self._parameters)) != flags:
                run_at_once(map(setattr, self._parameters, repeat("requires_grad"), flags))
            if any(map(is_not, gradients, repeat(None))):
                run_at_once(map(setattr, self._parameters, repeat("grad"), gradients))
        self._active = False
        self._saved = None
        if written is not None:
            raise _written_inside(written)

    _close = _core.retried(_put_back)

    def _to_copy(self, versions: list[int]) -> list[Captured]:
        """Return what has to be copied back.

        Where no step ran and torch counts no write, only what was written otherwise: reading proves it for less.
        """
        if any(self.places.written) or self._working.host is None or versions != self._inspection.expected_versions:
            return self._copied
        return self._inspection.changed(self._working, self._copied)

    def _written_pristine(self, versions: list[int]) -> str | None:
        """Name a tensor whose pristine bytes were written through torch during the query."""
        written = self._inspection.written_at_home(versions)
        return next((item.names[0] for item in written if item not in self._copied), None)

    def check(self) -> None:
        """Compare every captured tensor with what the arena left: identity, address, version, shape and dtype.

        Inside a query only identity, shape and dtype are compared: training moves and writes weights.

        Raises:
            RestoreError: Something differs; the message names the parameter or buffer.
        """
        self._require_held()
        self._inspection.check(at_home=not self._active)

    def verify(self) -> None:
        """Prove the pristine block unchanged since capture, and between queries the working block equal to it.

        Raises:
            RestoreError: A tensor's bytes differ; the message names it.
        """
        self._require_held()
        self._inspection.require_pristine()
        if not self._active:
            self._inspection.require_restored(self._working, self._copied)

    def digest(self, name_of: Callable[[str], str | None] | None = None) -> str:
        """Return a digest of names, shapes, dtypes and bytes of the pristine weights, 64 hexadecimal digits.

        It does not depend on which of them are trained.

        Args:
            name_of: The name under which a tensor counts; None leaves it out. By default its own.
        """
        return self._inspection.digest(name_of)

    def share(self) -> SharedWeights:
        """Return a copy of the pristine weights that other processes can use in place of one of their own.

        This arena keeps its block. To use the copy here too, make a new arena with it.

        Raises:
            AdaptError: The arena was released, or its weights are not on the CPU.
            OSError: The system has no such memory (only Linux does), or not enough.
        """
        self._require_held()
        block = self._pristine.host
        if block is None:
            raise AdaptError(f"weights must be on cpu to be shared between processes, got {self.device}.")
        memory = _core.SharedMemory(self._pristine.nbytes)
        memory.write(0, torch.frombuffer(block, dtype=torch.uint8).numpy())
        memory.seal()
        return SharedWeights(memory, self._describe())

    def _describe(self) -> list[SharedTensor]:
        return [
            SharedTensor(i.names, i.kind, i.dtype, tuple(i.shape), i.stride, i.offset, i.nbytes) for i in self._items
        ]

    def snapshot(self) -> Snapshot:
        """Return a copy of the trained weights as the model has them now.

        Raises:
            AdaptError: No query is open.
        """
        self._require_open("snapshot")
        copy = WeightBlock(self.trainable_nbytes, self.device)
        for place, block in enumerate((self._working, self._other)):
            if block is not None:
                lying = zip(self._trainable, self.places.now, strict=True)
                copy.copy_from(block, [item for item, now in lying if now == place and item.nbytes > 0])
        return Snapshot(copy)

    def load(self, snapshot: Snapshot) -> None:
        """Give the model the weights of a snapshot, with one copy; no step may follow in this query.

        Raises:
            AdaptError: No query is open.
        """
        self._require_open("load")
        self._working.copy_from(snapshot.memory, [item for item in self._trainable if item.nbytes > 0])
        self.point_at([0] * len(self._trainable))

    @property
    def trainable_nbytes(self) -> int:
        """Bytes of the trained weights: of one snapshot."""
        return aligned(max(item.offset + item.nbytes for item in self._trainable))

    def _require_held(self) -> None:
        if self._released:
            raise AdaptError("the arena must hold a model, but it was released. Make a new WeightArena.")

    def _require_open(self, what: str) -> None:
        if not self._active:
            raise AdaptError(f"{what}() must be called inside a query. Call begin() first.")

    def release(self) -> None:
        """Give the model back memory of its own, with restored weights; the arena cannot be used again.

        What was moved or replaced since the last query is left as it is.
        """
        if self._released:
            return
        self.restore()
        for item, home in zip(self._items, self._homes, strict=True):
            if item.tensor.data_ptr() == home.data_ptr() and item.tensor.dtype == home.dtype:
                item.tensor.data = home.clone(memory_format=torch.preserve_format)
        self._released = True
        self._homes = []
        self.places = Places([])
        self._rounded = None


def _written_inside(name: str) -> RestoreError:
    return RestoreError(
        f"{name} must not be written inside a query: it is not trained. Load the model again and make a new "
        "WeightArena."
    )
