"""The demo's held-out documents under each method, and one prompt continued with and without training.

Knows the evaluation and what a demo shows. Does not know how sample and datastore were made. Does not print.
"""

from __future__ import annotations

from pathlib import Path

from ..config import EvalConfig, Progress
from ..evaluation.catalogue import BASE, IN_CONTEXT, TTT_NN
from ..evaluation.protocols import split_task
from ..evaluation.records import Measured
from ..evaluation.runner import evaluate
from ..stages import Stages
from ..store.document import Document
from ..training.adapted_model import AdaptedModel
from ..training.trainer import TestTimeTrainer
from .demo_result import DemoResult, HeldOut
from .demo_sample import MAX_OVERLAP, WINDOW_TOKENS, name_of

CURVE = (0, 2, 5, 10, 20)
_PROMPT_CHARACTERS = 160
_GENERATED = 48


class DemoMeasurement:
    """One run over the documents that are adapted to; fills a result and its seconds."""

    def __init__(
        self,
        result: DemoResult,
        trainer: TestTimeTrainer,
        documents: list[Document],
        seconds: Stages,
        progress: Progress | None,
    ) -> None:
        """Choose the prompt that is shown.

        Args:
            result: receives documents, continuations and the summary.
            trainer: with a datastore.
            documents: held out, at least one.
            seconds: receives those of each stage.
            progress: called after each pass of the model.
        """
        self._result = result
        self._trainer = trainer
        self._documents = documents
        self._seconds = seconds
        self._progress = progress
        self._config = EvalConfig(
            query_tokens=WINDOW_TOKENS, scored_tokens=WINDOW_TOKENS, curve=CURVE, max_overlap=MAX_OVERLAP
        )
        tasks = {name_of(one): split_task(trainer.tokenizer, one.text, self._config) for one in documents}

        def letters(document: Document) -> int:
            task = tasks[name_of(document)]
            return sum(map(str.isalpha, task.query[-_PROMPT_CHARACTERS:])) if task is not None else 0

        # A prompt of numbers or tables would show a reader nothing.
        self._shown = max(documents, key=letters)
        task = tasks[name_of(self._shown)]
        if task is not None:
            result.prompt, result.truth = task.query[-_PROMPT_CHARACTERS:], task.scored
        self._steps = trainer.config.num_neighbors
        points = len({k for k in CURVE if 0 < k < self._steps} | {self._steps})
        # Of training; of scoring base, the trained model, and behind neighbors.
        self._passes = self._steps + 1 + points + 1
        self._taken = 0

    def run(self, results: Path) -> None:
        """Measure, and write the result lines."""
        results.unlink(missing_ok=True)
        measured = evaluate(
            self._trainer,
            self._documents,
            out=results,
            config=self._config,
            methods=(BASE.name, TTT_NN.name, IN_CONTEXT.name),
            context_curve=(),  # with all neighbors alone: nothing else of it is shown
            observe=self._observe,
            on_scored=self._advance_one,
            on_document=self._collect,
        )
        result = self._result
        # Beside the continuations stands as much of the true text.
        result.truth = result.truth[: max(len(result.before), len(result.after))]
        result.summary = measured.summary()
        order = [name_of(document) for document in self._documents]
        result.documents.sort(key=lambda document: order.index(document.name))

    def _advance(self, to: int) -> None:
        self._taken = to
        if self._progress is not None:
            self._progress("measure (passes)", to, len(self._documents) * self._passes)

    def _advance_one(self) -> None:
        # Neighbors for which the context has no room are not scored behind: a document may take fewer passes.
        self._advance(min(self._taken + 1, (len(self._result.documents) + 1) * self._passes))

    def _observe(self, document: Document, adapted: AdaptedModel, k: int) -> None:
        result = self._result
        if document is self._shown and k in (0, self._steps):
            with self._seconds("generate"):
                text = adapted.generate(max_new_tokens=_GENERATED)
            result.before, result.after = (text, result.after) if k == 0 else (result.before, text)
        if k > 0:
            self._advance_one()

    def _collect(self, document: Document, measured: Measured) -> None:
        assert self._trainer.datastore is not None
        texts = self._trainer.datastore.documents
        lines = {line.method: line for line in measured.lines}
        trained = lines[TTT_NN.name]
        self._result.documents.append(
            HeldOut(
                name_of(document),
                lines[BASE.name].bits_per_byte(),
                lines[IN_CONTEXT.name].bits_per_byte(),
                {point.k: trained.bits_per_byte(point.k) for point in trained.points},
                [(str(texts[n.id].meta.get("name", n.id)), n.distance) for n in trained.neighbors],
            )
        )
        for spent in measured.seconds:
            self._seconds.add(spent.seconds)
        self._advance(len(self._result.documents) * self._passes)
