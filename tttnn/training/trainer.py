"""The transaction around one query: retrieve, train on each neighbor, hand out the adapted model, put it all back.

Knows models, neighbors and clocks. Does not know HTTP, files, or metrics over sets of documents. This is the only file
that may assume that adapted weights live in `trainer.model`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

import tttnn._core as _core

from .. import models
from ..config import AdaptConfig, ScoreConfig
from ..errors import AdaptError, ConfigError, NonFiniteLossError, RestoreError
from ..kernels.attention import NativeAttention
from ..kernels.precision import autocast, resolved
from ..lm.generate import Generation, OnToken, continued, drawing
from ..lm.loss import SlicedLoss, causal_lm_loss
from ..lm.neighbor_tokens import portion_of
from ..lm.score import Score, Scorer, model_max_length, token_ids
from ..lm.windows import training_windows
from ..retrieval.neighbors import Neighbor
from ..retrieval.retriever import Retriever
from ..weights.arena import WeightArena
from ..weights.lora import LowRankLayers
from ..weights.memory import require_memory
from ..weights.shared_weights import SharedWeights
from ..weights.trainable import trained_elements, trained_names
from .guard import Guard
from .optimizer import build_optimizer
from .report import AdaptReport, GenerationReport, GuardReport, StoppedBy, TrainedNeighbor
from .reuse import ReuseCache, TrainedState
from .schedule import rate_factors
from .step_time import Pace

_AT_CALL = (
    *("num_neighbors", "max_length", "max_neighbor_tokens", "max_tokens", "deadline_ms", "learning_rate", "schedule"),
    *("guard_every", "guard_min_tokens", "verify", "seed"),
)
"""Settings that may change between queries; a trainer is built for the others."""

_NOT_TRAINING = ("deadline_ms", "keep_memory", "num_neighbors", "reuse", "verify")
"""Settings that do not change what is trained of given neighbors."""


class AdaptedModel:
    """The model while it is adapted to one query. Usable only inside its `with` block."""

    def __init__(self, trainer: TestTimeTrainer, query: str, report: AdaptReport) -> None:
        self.query = query
        self.report = report
        self._trainer = trainer
        self._open = True

    @property
    def model(self) -> Any:
        """The adapted model itself."""
        self._check_open()
        return self._trainer.model

    def score(self, text: str, *, context: str = "") -> Score:
        """Score a text under the adapted weights; see `Scorer.score`."""
        self._check_open()
        started = time.perf_counter()
        try:
            return self._trainer.scorer.score(text, context=context)
        finally:
            seconds = self.report.seconds
            seconds["score"] = seconds.get("score", 0.0) + time.perf_counter() - started

    def bits_per_byte(self, text: str, *, context: str = "") -> float:
        """Return the bits per UTF-8 byte of a text under the adapted weights; NaN for an empty text."""
        return self.score(text, context=context).bits_per_byte

    def generate(self, prompt: str | None = None, *, max_new_tokens: int = 64, **options: Any) -> str:
        """Continue a prompt under the adapted weights; see `TestTimeTrainer.continued`. None: the query."""
        self._check_open()
        made = self._trainer.continued(
            self.query if prompt is None else prompt, max_new_tokens=max_new_tokens, **options
        )
        self.report.generations.append(GenerationReport.of(made))
        return made.text

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the adapted weights and the tokenizer as a directory that transformers loads.

        Low-rank matrices are merged into the weights: the directory holds a plain model.
        """
        self._check_open()
        if self._trainer._low_rank is not None:
            copies = self._trainer._low_rank.merged()
        else:
            # All parameters are views of one block: without a copy each would count as shared with all the others.
            copies = {name: tensor.detach().clone() for name, tensor in self._trainer.model.state_dict().items()}
        self._trainer.model.save_pretrained(path, state_dict=copies)
        self._trainer.tokenizer.save_pretrained(path)

    def _check_open(self) -> None:
        if not self._open:
            raise AdaptError("adapted model must be used inside its `with trainer.adapt(...)` block; it has ended")


Observer = Callable[[AdaptedModel, int], None]
"""Called as ``observe(adapted, k)`` before training (k = 0) and after each neighbor (k = 1, 2, ...)."""


class TestTimeTrainer:
    """Trains a causal language model on the neighbors of a query, for the length of a `with` block.

    The trainer owns the model's weights from creation until `release`: they live in one block, and a change from
    outside is refused by name at the next query. One query at a time; a second one while a block is open is an
    AdaptError.

    Example:
        >>> trainer = TestTimeTrainer.load("smollm2-135m", datastore)  # doctest: +SKIP
        >>> with trainer.adapt("def quicksort(") as adapted:  # doctest: +SKIP
        ...     print(adapted.generate(max_new_tokens=64))
    """

    __test__ = False  # the name starts like a test class of pytest

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        datastore: Retriever | None,
        config: AdaptConfig | None = None,
        *,
        score: ScoreConfig | None = None,
        shared_weights: SharedWeights | None = None,
    ) -> None:
        """Take over a loaded model.

        Args:
            model: a transformers causal language model, on one device, not quantised.
            tokenizer: its tokenizer.
            datastore: where neighbors come from; None: every call of `adapt` brings its own.
            config: how to train.
            score: how to score.
            shared_weights: from `share_weights` of a trainer with the same model and settings, in another process: this
                one then keeps no copy of its own.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.datastore = datastore
        self.config = config if config is not None else AdaptConfig()
        self.scorer = Scorer(model, tokenizer, score)
        self._max_window = model_max_length(model, tokenizer)
        self._low_rank = _low_rank(model, self.config)
        try:
            self._arena = _arena(model, self.config, self._low_rank, shared_weights)
            self.fingerprint = self.digest()
            """Digest of the weights taken over; the same whichever of them are trained."""
            self._optimizer = build_optimizer(self._arena, self.config)
            self._loss = SlicedLoss.for_model(model) or partial(causal_lm_loss, model)
        except BaseException:
            if self._low_rank is not None:
                self._low_rank.remove()
            raise
        self._device = next(model.parameters()).device
        bfloat16 = resolved(self.config.precision, self._device) == "bfloat16"
        self._attention = NativeAttention.for_model(model) if bfloat16 and self.config.attention == "auto" else None
        if self.config.keep_memory and self._device.type == "cpu":
            _core.keep_freed_memory()
        self._made_with = self.config
        self._open: dict[str, object] = {}  # "query": token of the transaction that is open
        self._states = ReuseCache(self.config.reuse)
        self._training_pace, self._guard_pace, self._copying_pace = Pace(), Pace(), Pace()

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        datastore: Retriever | None,
        config: AdaptConfig | None = None,
        *,
        score: ScoreConfig | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        shared_weights: SharedWeights | None = None,
    ) -> Self:
        """Load a model by demo name, hub id or directory.

        Args:
            name: for example ``smollm2-135m``, ``gpt2`` or ``path/to/model``.
            datastore: where neighbors come from.
            config: how to train.
            score: how to score.
            device: a torch device.
            dtype: type of the weights; float32 unless memory forbids it.
            threads: torch's threads on the CPU; None leaves them as they are.
            cache_dir: where demo models are kept.
            shared_weights: of the same model; see the constructor.

        Raises:
            UnknownModelError: there is no such model in reach.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if threads is not None:
            torch.set_num_threads(threads)
        place = models.resolve(name, cache_dir=cache_dir)
        with models.loading(name):
            tokenizer = AutoTokenizer.from_pretrained(place)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
        return cls(model.to(device), tokenizer, datastore, config, score=score, shared_weights=shared_weights)

    def adapt(
        self,
        query: str,
        *,
        neighbors: Sequence[Neighbor] | None = None,
        num_neighbors: int | None = None,
        deadline_ms: float | None = None,
        exclude_digests: Collection[str] = (),
        observe: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Adaptation:
        """Return a context manager that yields the model adapted to `query`.

        However the block ends, every parameter and buffer is then bit for bit what it was before, and train/eval mode,
        `requires_grad`, gradients and torch's random state are as before.

        Args:
            query: a text that is not empty.
            neighbors: trains on these, in this order, and does not search.
            num_neighbors: instead of the configuration's.
            deadline_ms: milliseconds from this call; training stops before the step that would overrun.
            exclude_digests: neighbors with such a text are left out; see `store.text_digest`.
            observe: called between neighbors with the model in its present state, also where a guard then hands out
                an earlier one; `reuse` is not used beside it.
            cancelled: asked before each step; True stops training, as at a deadline. May be set by another thread.

        Raises:
            ValueError: the query is empty.
            AdaptError: another query's block is open.
            RestoreError: a parameter was moved, replaced or written since the last query.
            ConfigError: `config` was replaced by one for which another trainer must be built.
            NonFiniteLossError: a loss or gradient is not finite; names the neighbor.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a str, got {type(query).__name__}")
        if not query:
            raise ValueError("query must not be empty, got ''")
        changes: dict[str, Any] = {}
        if num_neighbors is not None:
            changes["num_neighbors"] = num_neighbors
        if deadline_ms is not None:
            changes["deadline_ms"] = deadline_ms
        self._check_config()
        return Adaptation(
            self, query, self.config.with_(**changes), neighbors, frozenset(exclude_digests), observe, cancelled
        )

    def replay(self, report: AdaptReport | dict[str, Any]) -> Adaptation:
        """Return a context manager that repeats an adaptation from its report: as many steps, and no clock.

        On the same machine with the same number of threads, losses and weights are the same bit for bit.

        Args:
            report: from `AdaptedModel.report`, or the dictionary that its `to_dict` gave.

        Raises:
            AdaptError: this model or datastore is not the report's, or a document's text has changed.
        """
        held = report.to_dict(query=True) if isinstance(report, AdaptReport) else report
        self._check_config()
        if held["model"] != self.fingerprint:
            raise AdaptError(f"model must be the one of the report ({held['model'][:16]}), got {self.fingerprint[:16]}")
        # Made into settings first, so that lists are tuples again and settings newer than the report have defaults.
        before, now = AdaptConfig(**held["settings"]).to_dict(), self.config.to_dict()
        names = [name for name in now if before[name] != now[name] and name not in _NOT_TRAINING]
        if names:
            raise AdaptError(f"settings must be those of the report, but these differ: {', '.join(names)}")
        store = getattr(self.datastore, "store", None)
        if store is None:
            raise AdaptError("replay must have a datastore with a store to read the neighbors from")
        neighbors = []
        for row in held["neighbors"]:
            document = store[row["id"]]
            span = None if row["span"] is None else (row["span"][0], row["span"][1])
            neighbor = Neighbor(row["id"], row["distance"], document.text, document.meta, row["source"], span)
            if neighbor.digest != row["digest"]:
                raise AdaptError(
                    f"document {row['id']} must have the text of the report (digest {row['digest']}), "
                    f"got {neighbor.digest}"
                )
            neighbors.append(neighbor)
        config = self.config.with_(deadline_ms=None)
        guard = GuardReport(**held["guard"]) if held.get("guard") is not None else None
        # Without the query's text in the report, generate() must be given a prompt.
        adaptation = Adaptation(
            self, held.get("query", ""), config, neighbors, max_steps=held["steps"], replayed_guard=guard
        )
        adaptation._adapted.report.query_digest = held["query_digest"]
        return adaptation

    def generate(self, prompt: str, *, max_new_tokens: int = 64, **options: Any) -> str:
        """Return the text of `continued`, with the same arguments."""
        return self.continued(prompt, max_new_tokens=max_new_tokens, **options).text

    def continued(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        on_token: OnToken | None = None,
    ) -> Generation:
        """Continue a prompt with the weights as they are now.

        Args:
            prompt: the text before; of one that is too long the end is read, which the result and a log line tell.
            max_new_tokens: at most this many tokens, fewer than the model reads at once.
            temperature: 0 takes the likeliest token each time; above it, tokens are drawn.
            top_p: draws only among the likeliest tokens that hold this much probability together.
            stop: strings that end the text; they are cut off.
            seed: seed of the draw; None: the configuration's.
            on_token: called with each new piece of text; True ends the text. See `lm.generate.OnToken`.

        Returns:
            The continuation, its tokens, and how long they took.

        Raises:
            ValueError: an argument is not as above, or the prompt is empty.
        """
        ids = token_ids(self.tokenizer, prompt)
        if not ids:
            raise ValueError("prompt must not be empty, got ''")
        return continued(
            self.model,
            self.tokenizer,
            ids,
            window=self._max_window,
            max_new_tokens=max_new_tokens,
            stop=stop,
            seed=(self.config.seed if seed is None else seed) if temperature > 0 else None,
            on_token=on_token,
            **drawing(temperature, top_p),
        )

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Let the model compute as it does in training: for forward, backward and step."""
        attention = contextlib.nullcontext() if self._attention is None else self._attention.enabled()
        with self._arena.training_weights(), attention:
            yield

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a window (1, n), inside `_training`."""
        with autocast(self.config.precision, self._device):
            return self._loss(ids)

    def verify(self) -> None:
        """Prove that the weights are those taken over at creation; a RestoreError otherwise."""
        self._arena.check()
        self._arena.verify()

    def digest(self) -> str:
        """Return the digest of the model's own weights as they are now between queries; reads them all.

        Low-rank matrices are left out.
        """
        return self._arena.digest(LowRankLayers.base_name if self._low_rank is not None else None)

    def share_weights(self) -> SharedWeights:
        """Return a copy of the model's weights for trainers in other processes; see `SharedWeights`."""
        return self._arena.share()

    def release(self) -> None:
        """Give the model back as an ordinary one and free states kept for reuse; the trainer cannot be used again."""
        self._states.clear()
        self._arena.release()
        if self._low_rank is not None:
            self._low_rank.remove()

    def _check_config(self) -> None:
        made, now = self._made_with.to_dict(), self.config.to_dict()
        fixed = [name for name in made if made[name] != now[name] and name not in _AT_CALL]
        if fixed:
            raise ConfigError(
                f"{fixed[0]} must be as the trainer was made with ({made[fixed[0]]!r}), got {now[fixed[0]]!r}. "
                "Call release() and make a new trainer."
            )


class Adaptation:
    """One query's transaction; made by `TestTimeTrainer.adapt`, entered once."""

    def __init__(
        self,
        trainer: TestTimeTrainer,
        query: str,
        config: AdaptConfig,
        neighbors: Sequence[Neighbor] | None,
        exclude_digests: frozenset[str] = frozenset(),
        observe: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
        max_steps: int | None = None,
        replayed_guard: GuardReport | None = None,
    ) -> None:
        self._trainer = trainer
        self._max_steps = max_steps
        self._replayed_guard = replayed_guard
        self._config = config
        self._given = neighbors
        self._exclude = exclude_digests
        self._observe = observe
        self._cancelled = cancelled
        self._before: _ModelState | None = None
        self._token = object()
        self._started = time.perf_counter()
        self._deadline = math.inf
        report = AdaptReport(
            query_digest=hashlib.blake2b(query.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
            query=query,
            requested=len(neighbors) if neighbors is not None else config.num_neighbors,
            settings=config.to_dict(),
            seed=config.seed,
            precision=resolved(config.precision, trainer._device),
            model=trainer.fingerprint,
            datastore=getattr(trainer.datastore, "id", None) if neighbors is None else None,
            embedder=_embedder_name(trainer.datastore) if neighbors is None else None,
            threads=torch.get_num_threads(),
            versions=_versions(),
        )
        self._adapted = AdaptedModel(trainer, query, report)

    def __enter__(self) -> AdaptedModel:
        try:
            # One C call, so that a Ctrl-C finds the transaction either open, and ends it, or not begun.
            if self._trainer._open.setdefault("query", self._token) is not self._token:
                raise AdaptError("trainer must adapt to one query at a time; the block of another one is still open")
            if self._config.deadline_ms is not None:
                self._deadline = self._started + self._config.deadline_ms / 1000
            neighbors = self._retrieve()
            self._before = _ModelState(self._trainer.model)
            self._trainer._arena.begin()
            self._train(neighbors)
        except BaseException:
            self._restore()
            raise
        return self._adapted

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    __exit__ = _core.retried(_leave)

    def _restore(self) -> None:
        raised: KeyboardInterrupt | RestoreError | None = None
        while self._trainer._open.get("query") is self._token:
            # Every step can be repeated: a Ctrl-C in the middle starts over, and is raised when all is done.
            try:
                started = time.perf_counter()
                self._adapted._open = False
                try:
                    self._trainer._arena.restore()
                except RestoreError as error:
                    raised = error
                if self._before is not None:
                    self._before.put_back()
                self._adapted.report.seconds["restore"] = time.perf_counter() - started
                try:
                    if self._config.verify and self._before is not None and raised is None:
                        self._verify()
                finally:
                    self._trainer._open.clear()
            except KeyboardInterrupt as error:
                raised = error
        if raised is not None:
            raise raised

    def _verify(self) -> None:
        started = time.perf_counter()
        self._trainer._arena.verify()
        self._adapted.report.seconds["verify"] = time.perf_counter() - started

    def _retrieve(self) -> list[Neighbor]:
        report, k = self._adapted.report, self._config.num_neighbors
        if self._given is not None:
            found = list(self._given)
        elif k == 0:
            found = []
        else:
            if self._trainer.datastore is None:
                raise ValueError("adapt must be given neighbors, because the trainer has no datastore")
            started = time.perf_counter()
            # Each excluded text can take one place among the nearest.
            found = self._trainer.datastore.search(self._adapted.query, k + len(self._exclude))
            taken = time.perf_counter() - started
            report.seconds.update(getattr(found, "seconds", None) or {"retrieve": taken})
            report.query_truncated = bool(getattr(found, "query_truncated", False))
            report.left_out = dict(getattr(found, "left_out", {}))
        kept = [neighbor for neighbor in found if neighbor.digest not in self._exclude]
        report.excluded = len(found) - len(kept)
        if self._given is None:
            kept = kept[:k]
        report.found = len(kept)
        return kept

    def _train(self, neighbors: list[Neighbor]) -> None:
        trainer, config, report = self._trainer, self._config, self._adapted.report
        torch.manual_seed(config.seed)
        trainer.model.eval()  # dropout off
        key = self._reuse_key(neighbors)
        state = None if key is None else trainer._states.get(key)
        if state is not None and not (self._cancelled is not None and self._cancelled()):
            self._use(state, neighbors)
            return
        if config.optimizer_state == "fresh":
            trainer._optimizer.reset()
        report.seconds |= {"tokenize": 0.0, "train": 0.0}
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        guard = self._new_guard()
        if guard is not None and not guard.start():
            report.stopped_by = "deadline"
        else:
            self._observed(0)
            report.stopped_by = self._train_each(neighbors, guard)
        if report.stopped_by == "deadline" and report.steps == 0:
            trainer._training_pace.doubt()
            trainer._guard_pace.doubt()
        if guard is not None:
            guard.finish(len(report.neighbors), steps=report.steps)
            report.seconds["guard"] = guard.seconds
        elif report.guard is not None and report.guard.kept is not None:
            trainer._arena.use_kept()
        report.page_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        if key is not None and report.steps and report.stopped_by in ("neighbors", "max_tokens"):
            self._hold(key)

    def _train_each(self, neighbors: list[Neighbor], guard: Guard | None) -> StoppedBy:
        """Train on one neighbor after the other; return why that ended."""
        trainer, config, report = self._trainer, self._config, self._adapted.report
        factors = rate_factors(config.schedule, [neighbor.distance for neighbor in neighbors])
        for i, (neighbor, factor) in enumerate(zip(neighbors, factors, strict=True)):
            started = time.perf_counter()
            portion = portion_of(trainer.tokenizer, neighbor, config.max_neighbor_tokens)
            tokenized = time.perf_counter()
            report.seconds["tokenize"] += tokenized - started
            losses: list[float] = []
            trained = 0
            stopped: StoppedBy | None = None
            for window in training_windows(len(portion.tokens), min(config.max_length, trainer._max_window)):
                stopped = self._why_stop(window.end - window.begin, guard)
                if stopped is not None:
                    break
                tokens = portion.tokens[window.begin : window.end]
                losses.append(self._step(tokens, config.learning_rate * factor, i, neighbor))
                trained += len(tokens)
            report.seconds["train"] += time.perf_counter() - tokenized
            if losses or stopped is None:
                report.neighbors.append(
                    TrainedNeighbor(
                        id=neighbor.id,
                        distance=neighbor.distance,
                        source=neighbor.source,
                        digest=neighbor.digest,
                        span=neighbor.span,
                        trained_span=portion.span(neighbor.text, trained),
                        tokens=trained,
                        losses=losses,
                    )
                )
                if self._replayed_guard is not None and len(report.neighbors) == self._replayed_guard.kept:
                    trainer._arena.keep()
            if stopped is not None:
                return stopped
            if guard is not None:
                guard.check(i + 1, steps=report.steps)
            self._observed(i + 1)
        return "neighbors"

    def _new_guard(self) -> Guard | None:
        """Return the query's guard; None where there is none to be, which the report then explains."""
        trainer, config, report = self._trainer, self._config, self._adapted.report
        if self._replayed_guard is not None:
            # A report does not hold the query, and need not: it says which state was kept.
            report.guard = self._replayed_guard
        if config.guard == "none" or self._replayed_guard is not None:
            return None
        tokens = token_ids(trainer.tokenizer, self._adapted.query)
        if len(tokens) < config.guard_min_tokens:
            report.guard = GuardReport(
                reason=f"the query has {len(tokens)} tokens, fewer than guard_min_tokens ({config.guard_min_tokens})"
            )
            return None
        tokens = tokens[-min(config.max_length, trainer._max_window) :]
        ids = torch.tensor([tokens], device=trainer._device)

        def score() -> float:
            with torch.no_grad(), trainer._training():
                return trainer._forward(ids).item()

        guard = Guard(
            trainer._arena,
            score,
            every=config.guard_every,
            tokens=len(tokens),
            pace=trainer._guard_pace,
            deadline=self._deadline,
        )
        report.guard = guard.report
        return guard

    def _reuse_key(self, neighbors: list[Neighbor]) -> Hashable:
        """Return what decides the weights after training, to the last bit; None where no state may be reused."""
        config = self._config
        watched = self._observe is not None or self._max_steps is not None
        if config.reuse == 0 or config.optimizer_state == "carried" or watched or not neighbors:
            return None
        settings = tuple((name, value) for name, value in config.to_dict().items() if name not in _NOT_TRAINING)
        distances = [neighbor.distance for neighbor in neighbors] if config.schedule == "distance" else []
        query = self._adapted.report.query_digest if config.guard == "query" else None
        texts = tuple((neighbor.digest, neighbor.span) for neighbor in neighbors)
        return texts, tuple(distances), query, settings, torch.get_num_threads()

    def _use(self, state: TrainedState, neighbors: list[Neighbor]) -> None:
        """Take over the weights that training on the same neighbors gave before."""
        report = self._adapted.report
        started = time.perf_counter()
        self._trainer._arena.load(state.weights)
        report.seconds["reuse"] = time.perf_counter() - started
        report.reused = True
        # The same texts may lie in other documents, at another distance from this query.
        report.neighbors = [
            replace(trained, id=now.id, distance=now.distance, source=now.source, losses=list(trained.losses))
            for trained, now in zip(state.neighbors, neighbors, strict=False)
        ]
        report.steps, report.tokens, report.bytes_moved = state.steps, state.tokens, state.bytes_moved
        report.stopped_by = state.stopped_by
        report.guard = None if state.guard is None else replace(state.guard)

    def _hold(self, key: Hashable) -> None:
        """Hold the weights for the next query with these neighbors, unless the deadline leaves no time for the copy."""
        trainer, report = self._trainer, self._adapted.report
        nbytes = trainer._arena.trainable_nbytes
        started = time.perf_counter()
        if started + trainer._copying_pace.predict(nbytes) >= self._deadline:
            return
        trainer._states.make_room()
        state = TrainedState(
            trainer._arena.snapshot(),
            list(report.neighbors),
            report.steps,
            report.tokens,
            report.bytes_moved,
            report.stopped_by,
            report.guard,
        )
        trainer._states.put(key, state)
        report.seconds["reuse"] = time.perf_counter() - started
        trainer._copying_pace.saw(report.seconds["reuse"], nbytes)

    def _observed(self, k: int) -> None:
        if self._observe is not None:
            seconds = self._adapted.report.seconds
            scored = seconds.get("score", 0.0)
            started = time.perf_counter()
            self._observe(self._adapted, k)
            taken = time.perf_counter() - started - (seconds.get("score", 0.0) - scored)
            seconds["observe"] = seconds.get("observe", 0.0) + taken

    def _why_stop(self, tokens: int, guard: Guard | None) -> StoppedBy | None:
        if self._cancelled is not None and self._cancelled():
            return "cancelled"
        if self._max_steps is not None and self._adapted.report.steps >= self._max_steps:
            return "max_steps"
        limit = self._config.max_tokens
        if limit is not None and self._adapted.report.tokens + tokens > limit:
            return "max_tokens"
        predicted = self._trainer._training_pace.predict(tokens)
        if guard is not None:
            predicted += guard.predicted  # of the state that the step makes
        if time.perf_counter() + predicted >= self._deadline:
            return "deadline"
        return None

    def _step(self, tokens: list[int], rate: float, position: int, neighbor: Neighbor) -> float:
        trainer, report = self._trainer, self._adapted.report
        started = time.perf_counter()
        ids = torch.tensor([tokens], device=trainer._device)
        with torch.enable_grad(), trainer._training():
            loss = trainer._forward(ids)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"loss of neighbor {position} (document {neighbor.id}) must be finite, got {value} at step "
                    f"{report.steps}. The weights are restored; leave the document out or lower the learning rate."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            try:
                stats = trainer._optimizer.step(rate)
            except NonFiniteLossError as error:
                raise NonFiniteLossError(
                    f"gradient of neighbor {position} (document {neighbor.id}) at step {report.steps}: {error}"
                ) from error
        report.steps += 1
        report.tokens += len(tokens)
        report.bytes_moved += stats.bytes_moved
        taken = time.perf_counter() - started
        report.step_seconds.append(taken)
        trainer._training_pace.saw(taken, len(tokens))
        return value


class _ModelState:
    """What else a query changes, beside what the arena puts back: train/eval modes and torch's random state."""

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
    model: torch.nn.Module, config: AdaptConfig, low_rank: LowRankLayers | None, shared: SharedWeights | None
) -> WeightArena:
    """Move the model's weights into an arena that trains those the configuration names, if memory allows."""
    names = trained_names(model, config) if low_rank is None else low_rank.names
    held, trained = trained_elements(model, names)
    best = config.guard == "query"
    rounded = _rounded(config, next(model.parameters()).device)
    require_memory(held, trained, best=best, reused=config.reuse, rounded=rounded)
    return WeightArena(model, trainable=names, restore=config.restore, keeps_best=best, rounded=rounded, shared=shared)


def _rounded(config: AdaptConfig, device: torch.device) -> bool:
    """Whether to train on weights rounded ahead. Otherwise bfloat16 products round them each time (autocast)."""
    return config.optimizer == "adamw" and device.type == "cpu" and resolved(config.precision, device) == "bfloat16"


def _embedder_name(retriever: Any) -> str | None:
    """Return the name of the embedder behind a retriever, where it or the datastore behind it says so."""
    for place in (retriever, getattr(retriever, "datastore", None)):
        name = getattr(place, "embedder_name", None)
        if isinstance(name, str):
            return name
    return None


def _versions() -> dict[str, str]:
    import transformers

    from ..version import __version__

    return {
        "tttnn": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
