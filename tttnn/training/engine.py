"""What is trained and what trains it: a model, its weights in an arena, an optimizer, the loss, and step times.

Knows one model on one device, and what a transaction changes of it. Does not know neighbors, reports, deadlines or
where texts come from. Nothing outside of this package may assume that adapted weights live in the model itself.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

import tttnn._core as _core

from ..config import AdaptConfig, ScoreConfig
from ..errors import AdaptError, NonFiniteLossError
from ..kernels.hf_attention import NativeAttention
from ..kernels.precision import autocast
from ..kernels.thread_modes import Autocast, Gradients
from ..lm.gate import check_model, check_trains, probe_ids
from ..lm.generate import Generation, OnToken, continued, drawing
from ..lm.loss import loss_of
from ..lm.modes import eval_mode
from ..lm.plain_states import PlainStates
from ..lm.precision import usable_precision
from ..lm.score import Scorer
from ..lm.tokens import TextTokens
from ..undone import UndoneBlock
from ..weights.arena import WeightArena
from ..weights.inspection import Probed
from ..weights.lora import LowRankLayers, is_transposed
from ..weights.low_rank_update import LowRankUpdate
from ..weights.memory import require_memory
from ..weights.shared_weights import SharedWeights
from ..weights.trainable import trained_elements, trained_names
from .optimizer import build_optimizer
from .reuse import ReuseCache
from .step_time import Pace
from .turns import Turns


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
    """A causal language model that is trained for the length of a `transaction.Transaction`, and then put back.

    Not thread-safe: `turns` refuses what would meet, by name.

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
        turns: whose turn it is with them.
        attention: switches to the native one for training, where that serves.
        objective: the loss of a window.
        states: trained states of earlier transactions.
        training_pace: of steps, by tokens.
        guard_pace: of the guard's scores, by tokens.
        copying_pace: of copies of trained weights, by bytes.
        writing_pace: of continuations from their first token on, by tokens.
        reading_pace: of prompts and texts with what stands before them, by tokens.
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
        self._unprobed: tuple[PlainStates, Probed] | None = PlainStates(model), Probed(model)
        try:
            check_model(model, self.texts, getattr(model, "name_or_path", None))
        finally:
            self._forget_probes()
        self.device = next(model.parameters()).device
        self.turns = Turns(self._begin_reading)
        self.scorer = Scorer(model, self.texts, score, reading=self.turns.reading)
        self.max_window = self.scorer.model_length
        self.low_rank = _low_rank(model, config)
        self._take_over(shared_weights)
        self.weights = Weights(
            sum(p.numel() for name, p in model.named_parameters() if LowRankLayers.base_name(name) is not None),
            sum(parameter.numel() for parameter in self.arena.parameters),
            str(next(model.parameters()).dtype).removeprefix("torch."),
        )
        if config.keep_memory and self.device.type == "cpu":
            _core.keep_freed_memory()
        self.states = ReuseCache(config.reuse)
        self.training_pace, self.guard_pace, self.copying_pace, self.writing_pace = Pace(), Pace(), Pace(), Pace()
        self.reading_pace = Pace()

    def _take(self, shared_weights: SharedWeights | None) -> None:
        config = self.config
        if self.low_rank is not None:
            self.low_rank.insert()
        # Everything that is found by running the model comes before the arena takes note of what it holds: some
        # architectures write into their buffers as they run.
        self.objective = loss_of(self.model)
        check_trains(self.model, self.objective, self.texts)
        on_cpu = self.device.type == "cpu"
        self.precision = usable_precision(
            self.model,
            self.objective,
            probe_ids(self.texts),
            config.precision,
            trains=True,
            rounded=config.optimizer == "adamw" and on_cpu,
        )
        bfloat16 = self.precision == "bfloat16"
        with eval_mode(self.model):
            self.attention = NativeAttention.for_model(self.model) if bfloat16 and config.attention == "auto" else None
        self._forget_probes()
        self._unprobed = None
        # Weights rounded ahead for training; otherwise bfloat16 products round them each time (autocast).
        rounded = config.optimizer == "adamw" and on_cpu and bfloat16
        self.arena = _arena(self.model, config, self.low_rank, shared_weights, rounded)
        self.fingerprint = self.digest()
        self.optimizer = build_optimizer(self.arena, config)

    def _forget_probes(self) -> None:
        """Leave nothing of probes in the model, unless they wrote weights: attributes say that they did."""
        if self._unprobed is not None:
            before, tensors = self._unprobed
            if tensors.has_its_weights:
                tensors.put_back_buffers()
                before.put_back()

    def _give_back(self, *_: Any) -> None:
        if hasattr(self, "arena"):
            self.arena.release()
        if self.low_rank is not None:
            self.low_rank.remove()
        self._forget_probes()

    _take_over = _core.undoing(_take, _give_back)

    def _begin_reading(self) -> Callable[[], None]:
        """Take note of what a pass over the weights may leave in the model; return what puts it back."""
        before = PlainStates(self.model)
        untouched = self.arena.is_untouched  # else a caller wrote there, which the next query must find

        def end() -> None:
            # Attributes say what was done to buffers and weights, so both go back or neither.
            if untouched and self.arena.put_back_written():
                before.put_back()

        return end

    def step(self, tokens: Sequence[int], rate: float) -> Step:
        """Train one step on a window of tokens.

        Args:
            tokens: at least 2, at most `max_window`.
            rate: learning rate of this step.

        Raises:
            NonFiniteLossError: loss or gradient is NaN or infinite; no weight was changed by this step.
            AdaptError: no trained parameter has a gradient.
        """
        ids = torch.tensor([tokens], device=self.device)
        with Gradients(True), self.training():
            loss = self.loss_of(ids)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLossError(f"loss must be finite, got {value}")
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            if all(parameter.grad is None for parameter in self.arena.parameters):
                raise AdaptError(
                    f"loss must have a gradient for some of the {len(self.arena.parameters)} trained parameters, but "
                    "the model computes it without them (quantised layers, or states that it detaches). Load it in "
                    "float32 or bfloat16, or train other parameters."
                )
            stats = self.optimizer.step(rate)
        return Step(value, stats.bytes_moved)

    def change(self, update: LowRankUpdate, *, steps_follow: bool) -> None:
        """Add a low-rank update to the weights, inside a transaction and before its first step.

        Args:
            update: of linear layers whose weights are trained.
            steps_follow: whether steps may begin there; without, it costs less.

        Raises:
            AdaptError: a layer's weight is not trained, or has another shape.
        """
        layers = list(update.layers)
        numbers = self.arena.numbers_of([f"{name}.weight" for name in layers])
        name_of = dict(zip(numbers, layers, strict=True))
        if len(name_of) < len(layers):
            raise AdaptError("layers of an update must have weights of their own, but two of them share one")
        parameters = self.arena.parameters
        transposed = {name: is_transposed(self.model.get_submodule(name)) for name in layers}

        def weights(number: int) -> torch.Tensor:
            name = name_of[number]
            return update.changed(name, parameters[number], transposed[name])

        if steps_follow:
            self.optimizer.start_from(numbers, weights)
            return
        self.arena.begin_writing(numbers)
        for number in numbers:
            self.arena.write(number, weights(number))

    def loss(self, tokens: Sequence[int]) -> float:
        """Return the mean loss of a window of tokens, in nats per token, as a step would see it."""
        ids = torch.tensor([tokens], device=self.device)
        with Gradients(False), self.training():
            return self.loss_of(ids).item()

    def loss_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a window (1, n) as a scalar that has gradients, inside `training`."""
        with autocast(self.precision, self.device):
            return self.objective(ids)

    def training(self) -> TrainingArithmetic:
        """Return a block inside of which the model computes as it does in training: forward, backward and step."""
        return TrainingArithmetic(self.arena, self.attention)

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
        before: Callable[[int], list[int]] | None = None,
    ) -> Generation:
        """Continue a prompt with the weights as they are now; see `TestTimeTrainer.continued`.

        `before` is called with how many tokens may stand before the prompt's, and returns them.
        """
        if not prompt:
            raise ValueError("prompt must not be empty, got ''")
        ids, begins = self.texts.prompt(prompt, self.max_window)
        if before is not None:
            ids = [*ids[:begins], *before(self.max_window - max_new_tokens - len(ids)), *ids[begins:]]
        started = time.perf_counter()
        reading: float | None = None

        def after_token() -> None:
            nonlocal reading
            if reading is None:
                reading = time.perf_counter() - started
                self.reading_pace.saw(reading, len(ids))

        with self.turns.reading():
            generation = continued(
                self.model,
                self.tokenizer,
                ids,
                window=self.max_window,
                max_new_tokens=max_new_tokens,
                begins=begins,
                stop=stop,
                seed=seed if temperature > 0 else None,
                on_token=on_token,
                after_token=after_token,
                **drawing(temperature, top_p),
            )
        if reading is not None and len(generation.tokens) > 1:
            self.writing_pace.saw(max(0.0, generation.seconds - reading), len(generation.tokens) - 1)
        return generation

    def answer_seconds(self, prompt: str, tokens: int) -> float:
        """Return the seconds that a continuation of so many tokens is expected to take; 0 before the first was made."""
        read = len(self.texts.last_ids(prompt, self.max_window)) if tokens else 0
        return self.reading_pace.predict(read) + self.writing_pace.predict(tokens)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as they are now, low-rank matrices merged, and the tokenizer.

        Raises:
            FileExistsError: the directory is the model's own.
        """
        self.check_folder(path)
        if self.low_rank is not None:
            copies = self.low_rank.merged()
        else:
            # All parameters are views of one block: without a copy each would count as shared with all the others.
            copied: dict[int, torch.Tensor] = {}
            copies = {}
            for name, tensor in self.model.state_dict(keep_vars=True).items():
                if id(tensor) not in copied:
                    copied[id(tensor)] = tensor.detach().clone()
                copies[name] = copied[id(tensor)]
        self.model.save_pretrained(path, state_dict=copies)
        self.tokenizer.save_pretrained(path)

    def check_folder(self, path: str | os.PathLike[str]) -> None:
        """Refuse to write into the directory that the model was loaded from, which would then be another model.

        Raises:
            FileExistsError: it is that directory.
        """
        own = getattr(self.model.config, "_name_or_path", "")
        if own and os.path.isdir(own) and os.path.isdir(path) and os.path.samefile(own, path):
            raise FileExistsError(
                f"{os.fspath(path)}: must not be the folder that the model was loaded from. Choose another name."
            )

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the low-rank matrices as they are now; see `AdaptedModel.save_adapter`."""
        if self.low_rank is None:
            raise AdaptError(
                f"an adapter can be written of a trainer with trainable='lora', got {self.config.trainable!r}"
            )
        self.low_rank.save(path, base_model=str(getattr(self.model.config, "_name_or_path", "")))

    def verify(self) -> None:
        """Prove that the weights are those taken over at creation; a RestoreError otherwise."""
        self.turns.require_held()
        self.arena.check()
        self.arena.verify()

    def digest(self) -> str:
        """Return the digest of the model's own weights as they are now between queries; reads them all.

        Low-rank matrices are left out.
        """
        self.turns.require_held()
        return self.arena.digest(LowRankLayers.base_name if self.low_rank is not None else None)

    def release(self) -> None:
        """Give the model back as an ordinary one and free trained states; the engine cannot be used again."""
        self.states.clear()
        self._give_back()
        self.turns.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a trainer must not be pickled or copied: it owns its model's weights. Send a TrainerRecipe, and load a "
            "trainer of it in each process."
        )


class TrainingArithmetic(UndoneBlock[None]):
    """A block inside of which a model computes with the weights and the attention of training, and the caller's
    autocast, which products of a backward pass would see, is off.
    """

    def __init__(self, arena: WeightArena, attention: NativeAttention | None) -> None:
        self._autocast = Autocast(arena.device.type, bfloat16=False)
        self._weights = arena.training_weights()
        self._attention = None if attention is None else attention.enabled()

    def _enter(self) -> None:
        self._autocast.__enter__()
        self._weights.__enter__()
        if self._attention is not None:
            self._attention.__enter__()

    def undo(self) -> None:
        """Let the model compute as it did before."""
        if self._attention is not None:
            self._attention.undo()
        self._weights.undo()
        self._autocast.undo()


def _low_rank(model: torch.nn.Module, config: AdaptConfig) -> LowRankLayers | None:
    if config.trainable != "lora":
        return None
    return LowRankLayers(
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
    parameters, trained = trained_elements(model, names)
    best = config.guard == "query"
    require_memory(parameters, trained, best=best, reused=config.reuse, rounded=rounded)
    return WeightArena(model, trainable=names, keeps_best=best, rounded=rounded, shared=shared)
