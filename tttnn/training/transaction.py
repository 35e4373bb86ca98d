"""One transaction over an engine: what it changes of a model, and the one place where all of it is put back.

Knows an engine's weights, the model's modes and torch's. Does not know queries, neighbors or steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import tttnn._core as _core

from ..errors import AdaptError, RestoreError
from ..kernels.hf_attention import NativeAttention
from ..kernels.thread_modes import ThreadModes
from ..lm.modes import eval_mode
from ..lm.plain_states import PlainStates
from ..stages import Stages
from .engine import Engine
from .turns import Claim


class Transaction:
    """Owns what has to be put back. `open`, `begin`, any steps of the engine, `end`.

    Whatever was interrupted, `end` puts everything back; so does losing the object, as where a Ctrl-C falls between
    the entry of a `with` block and its first line, so that nobody leaves it.
    """

    def __init__(self, engine: Engine) -> None:
        self._claim = Claim()
        self._before: _Before | None = None
        self._engine = engine
        self._opened = False

    def open(self) -> None:
        """Take the turn; see `Turns.take` for who is refused.

        Raises:
            AdaptError: that, or torch's inference mode is on, or it was open before.
        """
        if self._opened:
            raise AdaptError("an adaptation must be entered once. Call adapt() again for another block.")
        if torch.is_inference_mode_enabled():
            raise AdaptError("nothing can be trained under torch.inference_mode(). Call adapt outside of it.")
        self._engine.turns.take(self._claim)
        self._opened = True

    def begin(self, seed: int) -> None:
        """Take note of everything that training changes, and let the weights be trained.

        Raises:
            RestoreError: a weight was moved, replaced or written since the last transaction.
        """
        engine = self._engine
        self._before = _Before(engine.model, engine.device, engine.attention)
        engine.arena.begin()
        torch.manual_seed(seed)
        self._before.modes.__enter__()  # dropout off

    @property
    def is_open(self) -> bool:
        """Whether it has begun and not ended."""
        return self._engine.turns.has(self._claim)

    def require(self) -> None:
        """Refuse use after the end, and in another thread."""
        self._engine.turns.require(self._claim)

    def end(self, stages: Stages, *, verify: bool) -> None:
        """Put everything back and give the turn up; nothing where that is done.

        After an interrupt it is called again: each line of it can be run twice.

        Args:
            stages: get the seconds of ``restore`` and ``verify``.
            verify: whether to read all weights and compare.

        Raises:
            RestoreError: weights that are not trained were written; the rest is put back.
        """
        engine = self._engine
        if not engine.turns.has(self._claim):
            return
        try:
            with stages("restore"):
                if self._before is not None:
                    self._before.put_back()
                engine.arena.restore()
            if verify and self._before is not None:
                with stages("verify"):
                    engine.arena.verify()
        except RestoreError:
            engine.turns.give_back(self._claim)
            raise
        engine.turns.give_back(self._claim)

    def _end_lost(self) -> None:
        self.end(Stages(), verify=False)

    _lost = _core.retried(_end_lost)

    # At the end of the interpreter the module's names may be gone before this is.
    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing() and hasattr(self, "_engine"):
            self._lost()


class _Before:
    """What a transaction changes beside what the arena puts back.

    That is train/eval modes, plain attributes of modules, torch's random state, which attention the model has, and the
    thread's gradients and autocast: steps put the last three back themselves, but an interrupt may keep them from it.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, attention: NativeAttention | None) -> None:
        self.modes = eval_mode(model)
        self._plain = PlainStates(model)
        self._attention = None if attention is None else attention.enabled()
        self._thread = ThreadModes("cpu", device.type)
        self._cpu_rng = torch.random.get_rng_state()
        self._cuda_rng = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def put_back(self) -> None:
        """Put it all back; may be called again."""
        self._thread.put_back()
        if self._attention is not None:
            self._attention.undo()
        self.modes.undo()
        self._plain.put_back()
        torch.random.set_rng_state(self._cpu_rng)
        if self._cuda_rng is not None:
            torch.cuda.set_rng_state_all(self._cuda_rng)
