"""What is trained and what trains it: a model, its weights in an arena, an optimizer, the loss, and step times.

Knows one model on one device, and what a transaction changes of it. Does not know neighbors, reports, deadlines or
where texts come from. Nothing outside of this package may assume that adapted weights live in the model itself.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import tttnn._core as _core

from ..config import AdaptConfig, ScoreConfig
from ..errors import AdaptError, NonFiniteLossError
from ..kernels.hf_attention import NativeAttention
from ..kernels.precision import autocast
from ..lm.gate import check_model, check_trains, probe_ids
from ..lm.generate import Generation, OnToken, continued, drawing
from ..lm.loss import loss_of
from ..lm.precision import usable_precision
from ..lm.score import Scorer
from ..lm.tokens import TextTokens
from ..weights.arena import WeightArena
from ..weights.lora import LowRankLayers
from ..weights.memory import require_memory
from ..weights.shared_weights import SharedWeights
from ..weights.trainable import trained_elements, trained_names
from .optimizer import build_optimizer
from .reuse import ReuseCache
from .step_time import Pace


@dataclass(frozen=True, slots=True)
class Weights:
    """How many weights a model has (tied ones once, low-rank matrices left out) and trains, and their type."""

    parameters: int
    trained: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one step saw and cost: the loss before it in nats per token, and the bytes that the optimizer moved."""

    loss: float
    bytes_moved: int


class Engine:
    """A causal language model that is trained for the length of a transaction, and then put back.

    A transaction is `open`, `begin`, steps, `put_back` until that returns, `close`: see `adaptation.Adaptation`, which
    makes a `with` block of it. Not thread-safe but for `open`, which refuses a second transaction.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
        texts: how it reads texts.
        config: settings that the engine was made with.
        scorer: scores texts under the weights as they are.
        device: of the weights.
        max_window: tokens that the model reads at once.
        precision: arithmetic of training: what the settings ask for, where that works.
        low_rank: its low-rank matrices, where these are what is trained.
        arena: its weights.
        optimizer: trains them.
        fingerprint: digest of the weights taken over; the same whichever of them are trained.
        weights: how many there are.
        states: trained states of earlier transactions.
        training_pace: of steps, by tokens.
        guard_pace: of the guard's scores, by tokens.
        copying_pace: of copies of trained weights, by bytes.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: AdaptConfig,
        *,
        score: ScoreConfig | None = None,
        shared_weights: SharedWeights | None = None,
    ) -> None:
        """Take over a loaded model; see `TestTimeTrainer`."""
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.texts = TextTokens(tokenizer, config.control_tokens)
        check_model(model, self.texts, getattr(model, "name_or_path", None))
        self.device = next(model.parameters()).device
        self.scorer = Scorer(model, self.texts, score)
        self.max_window = self.scorer.model_length
        self.low_rank = _low_rank(model, config)
        try:
            # Everything that is found by running the model, before the arena takes note of what it holds: some
            # architectures write into their buffers as they run.
            self.objective = loss_of(model)
            check_trains(model, self.objective, self.texts)
            self.precision = usable_precision(
                model,
                self.objective,
                probe_ids(self.texts),
                config.precision,
                trains=True,
                rounded=config.optimizer == "adamw" and self.device.type == "cpu",
            )
            bfloat16 = self.precision == "bfloat16"
            self._attention = NativeAttention.for_model(model) if bfloat16 and config.attention == "auto" else None
            self.arena = _arena(model, config, self.low_rank, shared_weights, self._rounds)
            self.fingerprint = self.digest()
            self.optimizer = build_optimizer(self.arena, config)
        except BaseException:
            if self.low_rank is not None:
                self.low_rank.remove()
            raise
        self.weights = Weights(
            sum(p.numel() for name, p in model.named_parameters() if LowRankLayers.base_name(name) is not None),
            sum(parameter.numel() for parameter in self.arena.parameters),
            str(next(model.parameters()).dtype).removeprefix("torch."),
        )
        if config.keep_memory and self.device.type == "cpu":
            _core.keep_freed_memory()
        self.states = ReuseCache(config.reuse)
        self.training_pace, self.guard_pace, self.copying_pace = Pace(), Pace(), Pace()
        self._holder: dict[str, object] = {}  # "transaction": the one that is open
        self._before: _ModelState | None = None

    @property
    def attends_natively(self) -> bool:
        """Whether training attends by the core."""
        return self._attention is not None

    @property
    def _rounds(self) -> bool:
        """Whether to train on weights rounded ahead. Otherwise bfloat16 products round them each time (autocast)."""
        return self.config.optimizer == "adamw" and self.device.type == "cpu" and self.precision == "bfloat16"

    def open(self, transaction: object) -> None:
        """Let a transaction begin.

        Raises:
            AdaptError: another one is open.
        """
        # One C call, so that a Ctrl-C finds the transaction either open, and ends it, or not begun.
        if self._holder.setdefault("transaction", transaction) is not transaction:
            raise AdaptError("trainer must adapt to one query at a time; the block of another one is still open")

    def is_open(self, transaction: object) -> bool:
        """Return whether this transaction is the open one."""
        return self._holder.get("transaction") is transaction

    def begin(self, seed: int) -> None:
        """Take note of everything that training changes, and let the weights be trained."""
        self._before = _ModelState(self.model)
        self.arena.begin()
        torch.manual_seed(seed)
        self.model.eval()  # dropout off

    @property
    def begun(self) -> bool:
        """Whether the open transaction has begun to train."""
        return self._before is not None

    def put_back(self) -> None:
        """Put everything back that the transaction changed. May be called again, after an interrupt as well.

        Raises:
            RestoreError: weights that are not trained were written; the rest is put back.
        """
        try:
            self.arena.restore()
        finally:
            if self._before is not None:
                self._before.put_back()

    def close(self) -> None:
        """End the open transaction."""
        self._before = None
        self._holder.clear()

    def step(self, tokens: Sequence[int], rate: float) -> Step:
        """Train one step on a window of tokens.

        Args:
            tokens: at least 2, at most `max_window`.
            rate: learning rate of this step.

        Raises:
            NonFiniteLossError: loss or gradient is NaN or infinite; no weight was changed by this step.
        """
        ids = torch.tensor([tokens], device=self.device)
        with torch.enable_grad(), self.training():
            loss = self.loss_of(ids)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLossError(f"loss must be finite, got {value}")
            loss.backward()  # type: ignore[no-untyped-call]
            stats = self.optimizer.step(rate)
        return Step(value, stats.bytes_moved)

    def loss(self, tokens: Sequence[int]) -> float:
        """Return the mean loss of a window of tokens, in nats per token, as a step would see it."""
        ids = torch.tensor([tokens], device=self.device)
        with torch.no_grad(), self.training():
            return self.loss_of(ids).item()

    def loss_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a window (1, n) as a scalar that has gradients, inside `training`."""
        with autocast(self.precision, self.device):
            return self.objective(ids)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Let the model compute as it does in training: for forward, backward and step."""
        attention = contextlib.nullcontext() if self._attention is None else self._attention.enabled()
        with self.arena.training_weights(), attention:
            yield

    def continued(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        on_token: OnToken | None = None,
    ) -> Generation:
        """Continue a prompt with the weights as they are now; see `TestTimeTrainer.continued`."""
        if not prompt:
            raise ValueError("prompt must not be empty, got ''")
        ids, begins = self.texts.prompt(prompt)
        return continued(
            self.model,
            self.tokenizer,
            ids,
            window=self.max_window,
            max_new_tokens=max_new_tokens,
            begins=begins,
            stop=stop,
            seed=seed if temperature > 0 else None,
            on_token=on_token,
            **drawing(temperature, top_p),
        )

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as they are now, low-rank matrices merged, and the tokenizer."""
        if self.low_rank is not None:
            copies = self.low_rank.merged()
        else:
            # All parameters are views of one block: without a copy each would count as shared with all the others.
            copies = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.save_pretrained(path, state_dict=copies)
        self.tokenizer.save_pretrained(path)

    def verify(self) -> None:
        """Prove that the weights are those taken over at creation; a RestoreError otherwise."""
        self.arena.check()
        self.arena.verify()

    def digest(self) -> str:
        """Return the digest of the model's own weights as they are now between queries; reads them all.

        Low-rank matrices are left out.
        """
        return self.arena.digest(LowRankLayers.base_name if self.low_rank is not None else None)

    def release(self) -> None:
        """Give the model back as an ordinary one and free trained states; the engine cannot be used again."""
        self.states.clear()
        self.arena.release()
        if self.low_rank is not None:
            self.low_rank.remove()


class _ModelState:
    """What else a transaction changes, beside what the arena puts back: train/eval modes and torch's random state."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._cpu_rng = torch.random.get_rng_state()
        self._cuda_rng = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def put_back(self) -> None:
        for module, training in self._modes:
            module.training = training
        torch.random.set_rng_state(self._cpu_rng)
        if self._cuda_rng is not None:
            torch.cuda.set_rng_state_all(self._cuda_rng)


def _low_rank(model: torch.nn.Module, config: AdaptConfig) -> LowRankLayers | None:
    if config.trainable != "lora":
        return None
    return LowRankLayers.insert(
        model, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets, seed=config.seed
    )


def _arena(
    model: torch.nn.Module,
    config: AdaptConfig,
    low_rank: LowRankLayers | None,
    shared: SharedWeights | None,
    rounded: bool,
) -> WeightArena:
    """Move the model's weights into an arena that trains those the configuration names, if memory allows."""
    names = trained_names(model, config) if low_rank is None else low_rank.names
    held, trained = trained_elements(model, names)
    best = config.guard == "query"
    require_memory(held, trained, best=best, reused=config.reuse, rounded=rounded)
    return WeightArena(model, trainable=names, restore=config.restore, keeps_best=best, rounded=rounded, shared=shared)
