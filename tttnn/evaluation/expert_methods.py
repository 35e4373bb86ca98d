"""Methods that merge experts, which learned before the query came: alone, with neighbors, and trained on from there.

Know a document's neighbors and which experts may not be used for it. Do not know how text is scored, nor files, groups
or statistics.
"""

from __future__ import annotations

from typing import Any

from ..config import AdaptConfig
from ..training.adaptation import Adaptation
from ..training.adapted_model import AdaptedModel
from ..training.report import AdaptReport
from .case import GENERATED, Case, Scored
from .catalogue import AUTO, INSTANT, INSTANT_CONTEXT
from .context_methods import context_settings
from .lab import Lab
from .measurement import Measurement
from .records import Point, UsedNeighbor

_NO_DEADLINE = 1e12  # milliseconds; the mode auto trains until a deadline alone


def _settings(lab: Lab, config: AdaptConfig) -> dict[str, Any]:
    return {
        "leaves": config.leaves,
        "leaf_temperature": config.leaf_temperature,
        "leaf_distance": config.leaf_distance,
        "expert_distance": config.expert_distance,
        **lab.seen().describe(),
    }


def _extra(report: AdaptReport) -> dict[str, Any]:
    assert report.experts is not None
    return {"experts": len(report.experts.used), "experts_left_out": sum(report.experts.left_out.values())}


def _instant(lab: Lab) -> AdaptConfig:
    return lab.trainer.config.with_(mode="instant", context_neighbors=0)


def _merged(case: Case) -> Adaptation:
    """Return the block in which the experts are merged that may be used for a document."""
    config = _instant(case.lab)
    return case.lab.trainer.adapt(
        case.task.query,
        config=config,
        neighbors=case.for_distance(config),
        exclude_digests=case.seen_and_scored(config),
    )


class Instant:
    """The experts of the query, merged; needs no neighbors: one point, at k = 0."""

    name = INSTANT.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return which experts there are and how they are merged."""
        return _settings(lab, _instant(lab))

    def measure(self, case: Case) -> Measurement:
        """Merge, and score."""
        trainer = case.lab.trainer
        with _merged(case) as adapted:
            report = adapted.report
            scored = case.scored(trainer)
            after = adapted.generate(max_new_tokens=GENERATED) if case.lab.keep_text else None
        point = Point(0, scored.nats, scored.query_nats, 0, 0, 0, _extra(report))
        seconds = report.seconds["experts"]
        stages = {"experts": seconds, "score": scored.seconds}
        return Measurement([point], {0: seconds}, stages, after=after, experts=case.receipts(report))


class InstantContext:
    """The experts of the query, merged, and neighbors before the query."""

    name = INSTANT_CONTEXT.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the settings of both."""
        return _settings(lab, _instant(lab)) | context_settings(lab)

    def measure(self, case: Case) -> Measurement:
        """Merge, and score behind each number of neighbors."""
        trainer, found = case.lab.trainer, case.found()
        points, seconds = [], {}
        used: list[UsedNeighbor] = []
        scoring, after = 0.0, None
        with _merged(case) as adapted:
            report = adapted.report
            before: list[int] | None = None
            scored: Scored | None = None
            for k in case.lab.curve:
                context, used = case.neighbors_in_context(found, k)
                if scored is None or context != before:
                    scored, before = case.scored(trainer, context), context
                    scoring += scored.seconds
                tokens = sum(neighbor.tokens for neighbor in used)
                points.append(Point(k, scored.nats, scored.query_nats, 0, 0, tokens, _extra(report)))
                seconds[k] = report.seconds["experts"] + found.total * (k > 0) + scored.seconds * scored.context_share
            if case.lab.keep_text:
                prompt = trainer.tokenizer.decode(before) + case.task.query
                after = adapted.generate(prompt, max_new_tokens=GENERATED)
        stages = found.seconds | {"experts": report.seconds["experts"], "score": scoring}
        return Measurement(
            points,
            seconds,
            stages,
            used,
            len(found.neighbors),
            after=after,
            left_out=found.left_out,
            experts=case.receipts(report),
        )


class Auto:
    """The experts of the query, merged and then trained on its nearest neighbors, which also stand before the query.

    At k neighbors: trained on k, with as many in the context as the mode ``auto`` reads, however many are trained on.
    """

    name = AUTO.name

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return the settings of all three."""
        return (
            lab.trainer.config.to_dict()
            | _settings(lab, self._config(lab))
            | context_settings(lab)
            | {"context_neighbors": self._config(lab).in_context}
        )

    @staticmethod
    def _config(lab: Lab) -> AdaptConfig:
        config = lab.trainer.config.with_(mode="auto")
        return config if config.deadline_ms is not None else config.with_(deadline_ms=_NO_DEADLINE)

    def measure(self, case: Case) -> Measurement:
        """Merge and train, and score after each number of neighbors."""
        lab, config, found = case.lab, self._config(case.lab), case.found()
        context: list[int] = []
        read: list[UsedNeighbor] = []
        states: dict[int, tuple[Scored, int, int, float]] = {}

        def measure(report: AdaptReport, k: int) -> None:
            nonlocal context, read
            if not states:  # a deadline may have left time for fewer of them
                context, read = case.neighbors_in_context(found, len(report.context))
            seconds = report.seconds["experts"] + report.seconds["tokenize"] + report.seconds["train"]
            scored = case.scored(lab.trainer, context)
            lab.trainer.engine.reading_pace.saw(scored.seconds, len(context) + len(case.scored_ids))
            states[k] = scored, report.steps, report.tokens, seconds

        def observe(adapted: AdaptedModel, k: int) -> None:
            if k in lab.curve:
                measure(adapted.report, k)

        with lab.trainer.adapt(
            case.task.query,
            config=config,
            neighbors=found.neighbors,
            exclude_digests=case.seen_and_scored(config),
            observe=observe,
        ) as adapted:
            report = adapted.report
            last = len(report.neighbors)
            if last not in states:
                measure(report, last)
            after = None
            if lab.keep_text:
                prompt = lab.trainer.tokenizer.decode(context) + case.task.query
                after = adapted.generate(prompt, max_new_tokens=GENERATED)
        points, spent = [], {}
        tokens = sum(neighbor.tokens for neighbor in read)
        for k in lab.curve:
            scored, steps, trained, seconds = states[max(held for held in states if held <= k)]
            points.append(Point(k, scored.nats, scored.query_nats, steps, trained, tokens, _extra(report)))
            spent[k] = seconds + found.total + scored.seconds * scored.context_share
        # A neighbor that was read and trained on has one receipt, of the larger part.
        used = {neighbor.id: neighbor for neighbor in read}
        for row in report.neighbors:
            if row.id not in used or used[row.id].tokens < row.tokens:
                used[row.id] = UsedNeighbor(row.id, row.digest, row.distance, row.tokens, row.span)
        stages = found.seconds | {name: value for name, value in report.seconds.items() if name != "observe"}
        stages["score"] = sum(state[0].seconds for state in states.values())
        return Measurement(
            points,
            spent,
            stages,
            list(used.values()),
            len(found.neighbors),
            report.stopped_by,
            after,
            left_out=found.left_out,
            experts=case.receipts(report),
        )
