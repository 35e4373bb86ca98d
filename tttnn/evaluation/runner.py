"""Measure methods on documents: one line per document and method, resumable, by one process or several.

Knows protocols, samples and files of results. Does not know how a model is adapted, nor what a method does.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import models
from ..config import EvalConfig, Progress
from ..errors import ConfigError, NonFiniteLossError
from ..store.document import Document, text_digest
from ..training.adapted_model import AdaptedModel
from ..training.trainer import TestTimeTrainer
from .case import Case
from .catalogue import BASE, TTT_NN
from .faults import of_one_text, reason_of
from .lab import Lab
from .measurement import Method
from .methods import methods_named
from .protocols import split_task
from .records import Line, Measured, Seconds, Skipped, Texts
from .result_file import ResultFile
from .results import EvalResult
from .sampling import group_of, sampled

_log = logging.getLogger("tttnn")

DEFAULT_METHODS = (BASE.name, TTT_NN.name)


def evaluate(
    trainer: TestTimeTrainer,
    documents: Iterable[Document | str],
    *,
    out: str | os.PathLike[str] | None = None,
    config: EvalConfig | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    exclude_own_text: bool = True,
    keep_text: bool = False,
    context_curve: Sequence[int] | None = None,
    progress: Progress | None = None,
    observe: Callable[[Document, AdaptedModel, int], None] | None = None,
    on_scored: Callable[[], None] | None = None,
    on_document: Callable[[Document, Measured], None] | None = None,
) -> EvalResult:
    """Measure methods on documents, each with its whole curve over neighbors from one pass.

    With `out`, a document's lines are appended to a file when it is done; seconds per stage go to ``<out>.seconds``
    and, with `keep_text`, texts to ``<out>.texts``. A file that an interrupted run left is continued: documents that it
    holds are not measured again, and the finished file is the same as without the interruption. A larger `limit`
    continues a file, too.

    Args:
        trainer: adapts and scores.
        documents: texts, grouped by the field `group_field` of their `meta`.
        out: file of result lines; None keeps them in memory alone.
        config: protocol, lengths, sample, and the numbers of neighbors to score after.
        methods: names of `catalogue.CATALOGUE`; base is measured in any case.
        exclude_own_text: leaves neighbors out whose text is the document's own, by digest.
        keep_text: keeps queries, excerpts of neighbors and continuations beside the results.
        context_curve: numbers of neighbors to score behind in the method in-context, each of which takes a pass of its
            own; 0 and the most are among them. None: those of `config`.
        progress: called after each document.
        observe: called as ``observe(document, adapted, k)`` in the pass of ttt-nn, with the base model (k = 0) and
            after each neighbor.
        on_scored: called after each pass that scores a text.
        on_document: called after each newly measured document.

    Raises:
        ConfigError: `out` holds results of other settings; there is no such method, or it cannot work here.
    """
    config = config if config is not None else EvalConfig()
    names = [method.name for method in methods_named(methods)]
    lab = Lab(
        trainer,
        config,
        names,
        exclude_own_text=exclude_own_text,
        keep_text=keep_text,
        context_curve=context_curve,
        observe=observe,
        on_scored=on_scored,
    )
    try:
        settings = results_settings(lab)
        record = Record(settings, sampled(documents, config), out, keep_text=keep_text)
        try:
            for done, (position, document) in enumerate(record.chosen):
                if progress is not None:
                    progress("evaluate", done, len(record.chosen))
                if record.missing(position):
                    measured = measured_document(lab, position, document)
                    if on_document is not None:
                        on_document(document, measured)
                    record.add(measured)
            if progress is not None:
                progress("evaluate", len(record.chosen), len(record.chosen))
            return record.result()
        finally:
            record.close()
    finally:
        lab.close()


def results_settings(lab: Lab) -> dict[str, Any]:
    """Return all that results depend on, for the head of their file. How many documents are taken is no part of it.

    Raises:
        ConfigError: a method cannot work under the protocol or with the trainer.
    """
    description = lab.trainer.describe()
    evaluation = lab.config.to_dict() | {"curve": lab.curve}
    del evaluation["limit"]
    return {
        "protocol": lab.config.protocol,
        "evaluation": evaluation,
        "methods": {method.name: method.settings(lab) for method in methods_named(lab.names)},
        "score": description.score,
        "model": {
            "name": description.name,
            "description": models.described(description.name),
            "fingerprint": description.model,
        },
        "datastore": description.datastore,
        "selection": description.selection,
        "exclude_own_text": lab.exclude_own_text,
        "threads": description.threads,
        "versions": {name: version for name, version in description.versions.items() if name != "python"},
    }


def carries_state(settings: dict[str, Any]) -> bool:
    """Return whether a method's answer depends on the documents before, from what `results_settings` gave."""
    return any(method.get("optimizer_state") == "carried" for method in settings["methods"].values())


def measured_document(lab: Lab, position: int, document: Document) -> Measured:
    """Measure one document under every method; one on which a method fails is left out, with the reason.

    Raises:
        TttnnError: what no other document would be spared: damaged files, weights that were changed from outside.
    """
    digest, group = text_digest(document.text), group_of(document, lab.config.group_field)
    measured, failing = Measured(None, [], [], []), ""
    try:
        document.text.encode()
        task = split_task(lab.trainer.texts, document.text, lab.config)
        if task is None:
            return Measured(Skipped(position, digest, group), [], [], [])
        case = Case(lab, document, task)
        for method in methods_named(lab.names):
            failing = f"{method.name}: "
            _take(measured, case, method, position, digest, group)
        return measured
    except UnicodeEncodeError:
        reason = "its text has a lone surrogate, which UTF-8 cannot hold"
    except Exception as error:
        if error is lab.raised or not of_one_text(error):
            raise
        reason = failing + reason_of(error)
    _log.warning("document %d is not measured: %s", position, reason)
    return Measured(Skipped(position, digest, group, reason), [], [], [])


def _take(measured: Measured, case: Case, method: Method, position: int, digest: str, group: str) -> None:
    """Ask one method, and keep what it answers.

    Raises:
        NonFiniteLossError: a loss that it measured is not finite.
    """
    lab, task = case.lab, case.task
    answer = method.measure(case)
    for point in answer.points:
        for name, nats in (("scored text", point.nats), ("query", point.query_nats)):
            if nats is not None and not math.isfinite(nats):
                raise NonFiniteLossError(f"loss of the {name} must be finite, got {nats} at k = {point.k}")
    measured.lines.append(
        Line(
            document=position,
            digest=digest,
            group=group,
            method=method.name,
            protocol=lab.config.protocol,
            tokens=len(case.scored_ids),
            num_bytes=len(task.scored.encode("utf-8")),
            words=len(task.scored.split()),
            query_tokens=len(case.query_ids),
            query_bytes=len(task.query.encode("utf-8")),
            found=answer.found,
            stopped_by=answer.stopped_by,
            points=answer.points,
            neighbors=answer.neighbors,
            left_out=answer.left_out,
            experts=answer.experts,
        )
    )
    measured.seconds.append(Seconds(position, method.name, answer.stages, answer.seconds))
    if lab.keep_text and answer.after is not None:
        excerpts = [(neighbor.id, case.excerpt(neighbor.id)) for neighbor in answer.neighbors]
        measured.texts.append(
            Texts(position, method.name, task.query, task.scored, excerpts, case.before(), answer.after)
        )


class Record:
    """What is known of the chosen documents: from a file of an earlier run, and newly measured."""

    def __init__(
        self,
        settings: dict[str, Any],
        chosen: list[tuple[int, Document]],
        out: str | os.PathLike[str] | None,
        *,
        keep_text: bool,
    ) -> None:
        self._settings = settings
        self.chosen = chosen
        self._known: dict[int, Measured] = {}
        self._file = ResultFile(Path(out), settings, texts=keep_text) if out is not None else None
        self._keep_text = keep_text
        if self._file is None:
            return
        try:
            for position, document in chosen:
                held = self._file.held(position, text_digest(document.text))
                if held is not None:
                    self._known[position] = held
            if carries_state(settings) and self._known and len(self._known) < len(chosen):
                raise ConfigError(
                    f"{out}: cannot be continued, because optimizer_state is carried from document to document. "
                    "Choose another --out."
                )
        except BaseException:
            self._file.close()
            raise

    def missing(self, position: int) -> bool:
        """Return whether a document is still to be measured."""
        return position not in self._known

    def add(self, measured: Measured) -> None:
        """Write a document that was measured."""
        if self._file is not None:
            self._file.append(measured)
        self._known[measured.position] = measured

    def result(self) -> EvalResult:
        """Return all that is known, by position."""
        result = EvalResult(self._settings, texts={} if self._keep_text else None)
        for position in sorted(self._known):
            result.add(self._known[position])
        return result

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
