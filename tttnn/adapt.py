"""The transaction around one query: retrieve, train on each neighbor, hand out the adapted model, put it all back.

Knows models, neighbors and clocks. Does not know HTTP, files, or metrics over sets of documents. This is the only file
that may assume that adapted weights live in `trainer.model`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch

from . import _core, models
from .arena import WeightArena
from .config import AdaptConfig, ScoreConfig
from .datastore import Neighbor
from .errors import AdaptError, NonFiniteLossError, RestoreError
from .loss import SlicedLoss, causal_lm_loss
from .optim import build_optimizer
from .precision import autocast, resolved
from .score import Score, Scorer, model_max_length, token_ids
from .shared import SharedWeights
from .windows import training_windows

_log = logging.getLogger("tttnn")

StoppedBy = Literal["neighbors", "deadline", "max_tokens", "max_steps", "cancelled"]


class Retriever(Protocol):
    """Anything that finds neighbors: a datastore, a cluster, a fake."""

    def search(self, query: str, k: int) -> list[Neighbor]:
        """Return at most `k` documents, nearest first."""


@dataclass(frozen=True, slots=True)
class TrainedNeighbor:
    """What one neighbor contributed. `losses` are in nats per token, each measured before its step."""

    id: int
    distance: float
    source: str | None
    digest: str
    span: tuple[int, int] | None
    tokens: int
    losses: list[float]


@dataclass(slots=True)
class AdaptReport:
    """What adapting to one query did and cost.

    `seconds` has one entry per stage: embed, search and read where the retriever says so (else retrieve), tokenize,
    train, observe, restore. `stopped_by` is "neighbors" when all of them were trained on. `excluded` counts texts that
    the caller excluded; `left_out` what a selection left out, by reason.
    """

    query_digest: str
    requested: int
    found: int = 0
    excluded: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    neighbors: list[TrainedNeighbor] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    bytes_moved: int = 0
    stopped_by: StoppedBy = "neighbors"
    query_truncated: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"
    model: str = ""
    datastore: str | None = None
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def losses(self) -> list[float]:
        """Loss before each step, in the order of the steps."""
        return [loss for neighbor in self.neighbors for loss in neighbor.losses]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


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
        return self._trainer.scorer.score(text, context=context)

    def bits_per_byte(self, text: str, *, context: str = "") -> float:
        """Return the bits per UTF-8 byte of a text under the adapted weights; NaN for an empty text."""
        return self.score(text, context=context).bits_per_byte

    def generate(self, prompt: str | None = None, *, max_new_tokens: int = 64, **options: Any) -> str:
        """Continue a prompt under the adapted weights; see `TestTimeTrainer.generate`. None: the query."""
        self._check_open()
        return self._trainer.generate(
            self.query if prompt is None else prompt, max_new_tokens=max_new_tokens, **options
        )

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the adapted weights and the tokenizer as a directory that transformers loads."""
        self._check_open()
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
            shared_weights: of the same model, from `WeightArena.share`: this process then keeps no copy of its own.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.datastore = datastore
        self.config = config if config is not None else AdaptConfig()
        self.scorer = Scorer(model, tokenizer, score)
        self._max_window = model_max_length(model, tokenizer)
        _check_memory(model)
        device = next(model.parameters()).device
        fused = self.config.optimizer == "adamw" and device.type == "cpu"
        self._arena = WeightArena(
            model,
            restore=self.config.restore,
            shared=shared_weights,
            rounded=fused and resolved(self.config.precision, device) == "bfloat16",
        )
        self.fingerprint = self._arena.digest()
        """Digest of the weights taken over."""
        self._optimizer = build_optimizer(self._arena, self.config)
        self._loss = SlicedLoss.for_model(model) or partial(causal_lm_loss, model)
        self._device = device
        self._open: dict[str, object] = {}  # "query": token of the transaction that is open
        self._seconds_per_token: float | None = None

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
            observe: called between neighbors with the model in its present state.
            cancelled: asked before each step; True stops training, as at a deadline. May be set by another thread.

        Raises:
            ValueError: the query is empty.
            AdaptError: another query's block is open.
            RestoreError: a parameter was moved, replaced or written since the last query.
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
        held = report.to_dict() if isinstance(report, AdaptReport) else report
        if held["model"] != self.fingerprint:
            raise AdaptError(f"model must be the one of the report ({held['model'][:16]}), got {self.fingerprint[:16]}")
        if held["settings"] != self.config.to_dict() | {"deadline_ms": held["settings"]["deadline_ms"]}:
            names = [name for name, value in self.config.to_dict().items() if held["settings"].get(name) != value]
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
        # The query itself is not in a report: generate() must be given a prompt.
        adaptation = Adaptation(self, "", config, neighbors, max_steps=held["steps"])
        adaptation._adapted.report.query_digest = held["query_digest"]
        return adaptation

    @torch.inference_mode()
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> str:
        """Continue a prompt with the weights as they are now.

        Args:
            prompt: the text before.
            max_new_tokens: at most this many tokens.
            temperature: 0 takes the likeliest token each time; above it, tokens are drawn.
            top_p: draws only among the likeliest tokens that hold this much probability together.
            stop: strings that end the text; they are cut off.
            seed: seed of the draw; None: the configuration's.

        Returns:
            The continuation alone.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more, got {temperature}")
        ids = token_ids(self.tokenizer, prompt)
        if not ids:
            raise ValueError("prompt must not be empty, got ''")
        ids = ids[-max(1, self.scorer.max_length - max_new_tokens) :]
        inputs = torch.tensor([ids], device=self._device)
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            torch.manual_seed(self.config.seed if seed is None else seed)
            options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if stop:
            # Not transformers' own stop strings: those also match what begins in the prompt.
            def stopped(out: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
                text = self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
                return torch.tensor([any(string in text for string in stop)], device=out.device)

            options["stopping_criteria"] = [stopped]
        pad = self.tokenizer.pad_token_id
        training = self.model.training
        self.model.eval()
        try:
            out = self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad if pad is not None else self.tokenizer.eos_token_id,
                **options,
            )
        finally:
            self.model.train(training)
        text = str(self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
        ends = [text.find(string) for string in stop if string in text]
        return text[: min(ends)] if ends else text

    def verify(self) -> None:
        """Prove that the weights are those taken over at creation; a RestoreError otherwise."""
        self._arena.check()
        self._arena.verify()

    def release(self) -> None:
        """Give the model back as an ordinary one; the trainer cannot be used afterwards."""
        self._arena.release()


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
    ) -> None:
        self._trainer = trainer
        self._max_steps = max_steps
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
            requested=len(neighbors) if neighbors is not None else config.num_neighbors,
            settings=config.to_dict(),
            precision=resolved(config.precision, trainer._device),
            model=trainer.fingerprint,
            datastore=getattr(trainer.datastore, "id", None) if neighbors is None else None,
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
                self._trainer._open.clear()
            except KeyboardInterrupt as error:
                raised = error
        if raised is not None:
            raise raised

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
        if config.optimizer_state == "fresh":
            trainer._optimizer.reset()
        report.seconds |= {"tokenize": 0.0, "train": 0.0}
        self._observed(0)
        for i, neighbor in enumerate(neighbors):
            started = time.perf_counter()
            tokens = trained_tokens(trainer.tokenizer, neighbor, config.max_neighbor_tokens)
            tokenized = time.perf_counter()
            report.seconds["tokenize"] += tokenized - started
            rate = config.learning_rate
            if config.schedule == "inverse_sqrt":
                rate /= math.sqrt(i + 1)
            losses: list[float] = []
            trained = 0
            stopped: StoppedBy | None = None
            for window in training_windows(len(tokens), min(config.max_length, trainer._max_window)):
                stopped = self._why_stop(window.end - window.begin)
                if stopped is not None:
                    break
                losses.append(self._step(tokens[window.begin : window.end], rate, i, neighbor))
                trained += window.end - window.begin
            report.seconds["train"] += time.perf_counter() - tokenized
            if losses or stopped is None:
                report.neighbors.append(
                    TrainedNeighbor(
                        neighbor.id,
                        neighbor.distance,
                        neighbor.source,
                        neighbor.digest,
                        neighbor.span,
                        trained,
                        losses,
                    )
                )
            if stopped is not None:
                report.stopped_by = stopped
                return
            self._observed(i + 1)

    def _observed(self, k: int) -> None:
        if self._observe is not None:
            seconds = self._adapted.report.seconds
            started = time.perf_counter()
            self._observe(self._adapted, k)
            seconds["observe"] = seconds.get("observe", 0.0) + time.perf_counter() - started

    def _why_stop(self, tokens: int) -> StoppedBy | None:
        if self._cancelled is not None and self._cancelled():
            return "cancelled"
        if self._max_steps is not None and self._adapted.report.steps >= self._max_steps:
            return "max_steps"
        limit = self._config.max_tokens
        if limit is not None and self._adapted.report.tokens + tokens > limit:
            return "max_tokens"
        predicted = (self._trainer._seconds_per_token or 0.0) * tokens
        if time.perf_counter() + predicted >= self._deadline:
            return "deadline"
        return None

    def _step(self, tokens: list[int], rate: float, position: int, neighbor: Neighbor) -> float:
        trainer, report = self._trainer, self._adapted.report
        started = time.perf_counter()
        ids = torch.tensor([tokens], device=trainer._device)
        with torch.enable_grad(), trainer._arena.training_weights():
            with autocast(self._config.precision, trainer._device):
                loss = trainer._loss(ids)
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
        taken = (time.perf_counter() - started) / len(tokens)
        known = trainer._seconds_per_token
        # Quick to believe that steps got slower, slow to believe that they got faster: a deadline must hold.
        trainer._seconds_per_token = taken if known is None or taken > known else 0.8 * known + 0.2 * taken
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


def trained_tokens(tokenizer: Any, neighbor: Neighbor, limit: int | None) -> list[int]:
    """Return the tokens of a neighbor to train on: at most `limit`, beginning where its nearest passage begins.

    Where fewer than `limit` tokens follow, tokens before the passage fill the rest. Only as much of a long document is
    tokenized as is needed.
    """
    if limit is None:
        return token_ids(tokenizer, neighbor.text)
    begin = 0
    if neighbor.span is not None and neighbor.span[0] > 0:
        begin = len(neighbor.text.encode("utf-8")[: neighbor.span[0]].decode("utf-8", "ignore"))
    after, whole = _first_tokens(tokenizer, neighbor.text[begin:], limit)
    if len(after) == limit or not whole or begin == 0:
        return after
    missing = limit - len(after)
    # A little more than is needed: the first token of the piece may be a fragment.
    before = token_ids(tokenizer, neighbor.text[max(0, begin - 16 * missing) : begin])
    return before[-missing:] + after


def _first_tokens(tokenizer: Any, text: str, limit: int) -> tuple[list[int], bool]:
    """Return the first `limit` tokens of a text, and whether the text ended before."""
    characters = 8 * limit
    while True:
        tokens = token_ids(tokenizer, text[:characters])
        # The last token of a piece may change when the text goes on, so one more than the limit is wanted.
        if characters >= len(text) or len(tokens) > limit:
            return tokens[:limit], characters >= len(text) and len(tokens) <= limit
        characters *= 4


def _check_memory(model: torch.nn.Module) -> None:
    """Refuse a model whose training cannot fit beside it: working weights, two moments and gradients.

    On the CPU alone; a CUDA device reports for itself when it is full.
    """
    weights = sum({p.data_ptr(): p.numel() for p in model.parameters() if p.device.type == "cpu"}.values())
    needed = 4 * 4 * weights  # four times the weights, in float32
    _log.info("training %d million weights needs %.2f GB beside the model", weights // 10**6, needed / 1e9)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return
    if needed > available:
        raise AdaptError(
            f"training must fit in memory: {weights:,} weights need {needed / 1e9:.1f} GB beside the model, and "
            f"{available / 1e9:.1f} GB are free. Choose a smaller model."
        )


def _versions() -> dict[str, str]:
    import transformers

    from . import __version__

    return {
        "tttnn": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
