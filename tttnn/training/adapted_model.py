"""The model as a `with` block hands it out: score, continue, save.

Knows an engine and a report. Does not know how the model came to be adapted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..lm.score import Score
from .engine import Engine
from .report import AdaptReport, GenerationReport
from .transaction import Transaction


class AdaptedModel:
    """The model while it is adapted to one query. Usable only inside its `with` block."""

    def __init__(self, engine: Engine, transaction: Transaction, report: AdaptReport) -> None:
        """Hand out a model.

        Args:
            engine: holds it.
            transaction: during which it is adapted.
            report: of the transaction; written on.
        """
        self.query = report.query
        self.report = report
        self._engine = engine
        self._transaction = transaction

    @property
    def model(self) -> Any:
        """The adapted model itself."""
        self._transaction.require()
        return self._engine.model

    def score(self, text: str, *, context: str = "") -> Score:
        """Score a text under the adapted weights; see `Scorer.score`."""
        self._transaction.require()
        with self.report.seconds("score"):
            return self._engine.scorer.score(text, context=context)

    def bits_per_byte(self, text: str, *, context: str = "") -> float:
        """Return the bits per UTF-8 byte of a text under the adapted weights; NaN for an empty text."""
        return self.score(text, context=context).bits_per_byte

    def generate(self, prompt: str | None = None, *, max_new_tokens: int = 64, **options: Any) -> str:
        """Continue a prompt under the adapted weights; see `TestTimeTrainer.continued`. None: the query."""
        self._transaction.require()
        if options.get("seed") is None:
            options["seed"] = self.report.seed
        generation = self._engine.continued(
            self.query if prompt is None else prompt, max_new_tokens=max_new_tokens, **options
        )
        self.report.generations.append(GenerationReport.of(generation))
        return generation.text

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the adapted weights and the tokenizer as a directory that transformers loads.

        Low-rank matrices are merged into the weights: the directory holds a plain model.
        """
        self._transaction.require()
        self._engine.save_pretrained(path)

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the low-rank matrices alone, as a directory that peft loads as an adapter of the same model.

        Raises:
            AdaptError: the trainer was made without ``trainable="lora"``.
        """
        self._transaction.require()
        self._engine.save_adapter(path)


Observer = Callable[[AdaptedModel, int], None]
"""Called as ``observe(adapted, k)`` before training (k = 0) and after each neighbor (k = 1, 2, ...)."""
