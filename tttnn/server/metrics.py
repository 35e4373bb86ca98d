"""What is counted and measured, and the names under which Prometheus reads it. The names are public interface.

Knows the registry of this process, which outlives every engine: counters never fall. Does not know requests' contents.
"""

from __future__ import annotations

from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..dispatch.dispatcher import Dispatcher, Restart
from ..dispatch.job import Job
from ..engines.pipe import Frame

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)

STAGES = (
    *("embed", "search", "read", "experts", "tokenize", "train", "guard", "observe", "reuse", "generate", "score"),
    "restore",
)
CODES = (
    *("queue_full", "queue_too_long", "would_miss_deadline", "draining", "loading", "invalid_api_key", "too_large"),
    *("invalid", "internal_error", "engine_died", "non_finite_loss", "shards_missing"),
)
"""Closed label sets; what is none of these counts as "other" or "invalid"."""


class Metrics:
    """All metrics of one server; an observer of its dispatcher."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        common: Any = {"registry": self._registry}
        self._requests = Counter(
            "tttnn_requests", "Requests answered, by route and status.", ["route", "status"], **common
        )
        self._seconds = Histogram(
            "tttnn_request_seconds",
            "From the request's head to the reply's end.",
            ["route"],
            buckets=_SECONDS,
            **common,
        )
        self._queue = Histogram("tttnn_queue_seconds", "Seconds that requests waited.", buckets=_SECONDS, **common)
        self._stages = Histogram(
            "tttnn_stage_seconds", "Seconds of each stage of an answer.", ["stage"], buckets=_SECONDS, **common
        )
        self._ratio = Histogram(
            "tttnn_cost_ratio", "Actual seconds of an answer over predicted ones.", buckets=_RATIOS, **common
        )
        self._tokens = Counter("tttnn_tokens", "Tokens read, written and trained.", ["kind"], **common)
        self._refusals = Counter("tttnn_refusals", "Requests that got no answer, by reason.", ["code"], **common)
        self._cancelled = Counter(
            "tttnn_cancelled", "Requests whose client left, by where they were.", ["where"], **common
        )
        self._restarts = Counter("tttnn_engine_restarts", "Engines replaced, by reason.", ["reason"], **common)
        self._verified = Counter("tttnn_verifications", "Proofs that the weights are unchanged.", ["result"], **common)
        self._reused = Counter("tttnn_reused", "Adaptations that took the state of an earlier one.", **common)
        self._waiting = Gauge("tttnn_requests_waiting", "Requests that wait for an engine.", **common)
        self._running = Gauge("tttnn_requests_running", "Requests that an engine works at.", **common)
        self._backlog = Gauge("tttnn_backlog_seconds", "Predicted seconds until all of them are answered.", **common)
        self._ready = Gauge("tttnn_engines_ready", "Engines that are ready or at work.", **common)
        for kind in ("prompt", "written", "trained", "scored"):
            self._tokens.labels(kind)
        for where in ("waiting", "running"):
            self._cancelled.labels(where)
        for reason in ("died", "stalled", "unsound"):
            self._restarts.labels(reason)
        for result in ("same", "changed"):
            self._verified.labels(result)
        for code in CODES:
            self._refusals.labels(code)

    def watch(self, dispatcher: Dispatcher) -> None:
        """Read the gauges from the line itself whenever they are asked for."""
        self._waiting.set_function(lambda: dispatcher.line.waiting)
        self._running.set_function(lambda: dispatcher.line.running)
        self._backlog.set_function(dispatcher.line.seconds)
        self._ready.set_function(lambda: dispatcher.engines_up)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        # When a counter was made is not worth a series of its own.
        lines = generate_latest(self._registry).decode().splitlines(keepends=True)
        return "".join(line for line in lines if "_created" not in line).encode()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has its reply, whatever it is; `route` is a path of ours or "other"."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, code: str) -> None:
        """A request got no answer."""
        self._refusals.labels(code if code in CODES else "invalid").inc()

    def cancelled(self, where: Literal["waiting", "running"]) -> None:
        """A client left."""
        self._cancelled.labels(where).inc()

    def finished(self, job: Job, frame: Frame) -> None:
        """An engine is done with a job."""
        self._queue.observe(job.queue_seconds)
        if frame["event"] != "done":
            return
        for stage, seconds in frame["result"].get("seconds", {}).items():
            if stage in STAGES:
                self._stages.labels(stage).observe(seconds)
        for kind, count in frame["counts"].items():
            if kind == "reused":
                self._reused.inc(count)
            else:
                self._tokens.labels(kind).inc(count)
        # What shares a state waits in its engine for others, and not for its own work.
        shared = job.place is not None and job.place.leader is not None
        if job.predicted_seconds > 0 and not job.cancelled and not shared:
            self._ratio.observe(job.actual_seconds / job.predicted_seconds)

    def restarted(self, reason: Restart) -> None:
        """An engine was replaced."""
        self._restarts.labels(reason).inc()

    def verified(self, ok: bool) -> None:
        """An engine has compared its weights."""
        self._verified.labels("same" if ok else "changed").inc()
