"""The model as a `with` block hands it out: score, continue, save.

Knows an engine and a report. Does not know how the model came to be adapted.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import AdaptError
from ..lm.generate import OnToken
from ..lm.neighbor_context import SEPARATOR, neighbors_before
from ..lm.neighbor_tokens import portion_of
from ..lm.score import Score
from ..retrieval.neighbors import Neighbor
from ..weights.low_rank_update import LowRankUpdate
from .engine import Engine
from .report import AdaptReport, GenerationReport
from .transaction import Transaction


class AdaptedModel:
    """The model while it is adapted to one query. Usable only inside its `with` block."""

    def __init__(
        self,
        engine: Engine,
        transaction: Transaction,
        report: AdaptReport,
        *,
        context: Sequence[Neighbor] = (),
        max_neighbor_tokens: int | None = None,
        update: LowRankUpdate | None = None,
        deadline: float = math.inf,
    ) -> None:
        """Hand out a model.

        Args:
            engine: holds it.
            transaction: during which it is adapted.
            report: of the transaction; written on.
            context: neighbors that are read before every text, nearest first.
            max_neighbor_tokens: at most this many tokens of each.
            update: what was merged into the weights; None: nothing.
            deadline: when a continuation ends, as `time.perf_counter` counts.
        """
        self._context = list(context)
        self._max_neighbor_tokens = max_neighbor_tokens
        self._update = update
        self.query = report.query
        self.report = report
        self._engine = engine
        self._transaction = transaction
        self._deadline = deadline

    def __repr__(self) -> str:
        state = "open" if self._transaction.is_open else "ended"
        return f"AdaptedModel({len(self.report.neighbors)} neighbors, {self.report.steps} steps, {state})"

    @property
    def model(self) -> Any:
        """The adapted model itself."""
        self._transaction.require()
        return self._engine.model

    def score(self, text: str, *, context: str = "") -> Score:
        """Score a text under the adapted weights, behind the neighbors in the context; see `Scorer.score`."""
        self._transaction.require()
        before: list[int] = []
        if self._context:
            texts, scorer = self._engine.texts, self._engine.scorer
            before = self.before(scorer.max_length - len(texts.ids(text)) - len(texts.ids(context)))
        started = time.perf_counter()
        with self.report.seconds("score"):
            scored = self._engine.scorer.score(text, context=context, before=before)
        self._engine.reading_pace.saw(time.perf_counter() - started, max(1, len(before) + scored.tokens))
        return scored

    def before(self, room: int) -> list[int]:
        """Return the tokens of the neighbors in the context, as they stand before a text, and write them on the report.

        Args:
            room: tokens that may stand there; of neighbors that find no room the farthest are left out.
        """
        self._transaction.require()
        texts = self._engine.texts
        portions = [portion_of(texts, neighbor, self._max_neighbor_tokens).tokens for neighbor in self._context]
        tokens, counts = neighbors_before(portions, texts.ids(SEPARATOR), room)
        counts += [0] * (len(portions) - len(counts))
        self.report.context = [
            replace(row, tokens=count) for row, count in zip(self.report.context, counts, strict=True)
        ]
        return tokens

    def bits_per_byte(self, text: str, *, context: str = "") -> float:
        """Return the bits per UTF-8 byte of a text under the adapted weights; NaN for an empty text."""
        return self.score(text, context=context).bits_per_byte

    def generate(self, prompt: str | None = None, *, max_new_tokens: int = 64, **options: Any) -> str:
        """Continue a prompt under the adapted weights; see `TestTimeTrainer.continued`. None: the query.

        Where the query has a deadline the text ends with the token at which it passes, and has one token at least; the
        report's `generations` then say that it was ended by "deadline".
        """
        self._transaction.require()
        late = False
        told: OnToken | None = options.pop("on_token", None)

        def on_token(piece: str, token: int) -> bool:
            nonlocal late
            ended = told is not None and bool(told(piece, token))
            late = not ended and time.perf_counter() >= self._deadline
            return ended or late

        if self._deadline < math.inf:
            options["on_token"] = on_token
        elif told is not None:
            options["on_token"] = told
        if options.get("seed") is None:
            options["seed"] = self.report.seed
        if self._context:
            options["before"] = self.before
        generation = self._engine.continued(
            self.query if prompt is None else prompt, max_new_tokens=max_new_tokens, **options
        )
        reported = GenerationReport.of(generation)
        if late and reported.ended_by == "callback":
            reported = replace(reported, ended_by="deadline")
        self.report.generations.append(reported)
        return generation.text

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the adapted weights and the tokenizer as a directory that transformers loads.

        Low-rank matrices are merged into the weights: the directory holds a plain model. Files of the same names that
        are there are replaced, as by transformers' own ``save_pretrained``.

        Raises:
            FileExistsError: the directory is the one that the model was loaded from.
        """
        self._transaction.require()
        self._engine.save_pretrained(path)

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the low-rank matrices alone, as a directory that peft loads as an adapter of the same model.

        They are those of the experts that were merged, or those that were trained.

        Raises:
            AdaptError: the trainer was made without ``trainable="lora"``, and no expert was merged or steps followed.
            FileExistsError: the directory is the one that the model was loaded from, whose loading would find it.
        """
        self._transaction.require()
        self._engine.check_folder(path)
        if self._update is not None:
            if self.report.steps:
                raise AdaptError(
                    f"an adapter of experts can be written where no step followed, got {self.report.steps} steps. Use "
                    "the mode instant, or save_pretrained()."
                )
            self._update.save(path, self._engine.model)
            return
        self._engine.save_adapter(path)


Observer = Callable[[AdaptedModel, int], None]
"""Called as ``observe(adapted, k)`` before training (k = 0) and after each neighbor (k = 1, 2, ...)."""
