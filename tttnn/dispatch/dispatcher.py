"""The middle of the server: jobs are let in, wait, run on an engine, and engines that die or hang are replaced.

Knows the line, the engines' links and what work costs. Does not know HTTP; metrics are told through `Observer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from ..config import ServeConfig
from ..engines.cost import Costs
from ..engines.pipe import Frame
from ..errors import ConfigError
from ..recipe import names_cluster
from .engine_link import EngineLink, HeldWeights, close_weights
from .idle_training import IdleTraining, idle_command
from .job import Job
from .line import Line, Place
from .refusals import Refused, of_engine

Restart = Literal["died", "stalled", "unsound"]

_LONGEST_PAUSE = 30.0
"""Seconds between two starts of an engine that keeps dying while it loads."""

_GENTLY = 5.0
"""Seconds that an engine with nothing to do has for ending by itself."""

_STEPS_OF_PATIENCE = 10


class Link(Protocol):
    """What the dispatcher needs of an engine: `EngineLink`, or a fake one in tests of order and clocks."""

    facts: Frame | None
    weights: HeldWeights | None

    async def start(self) -> None:
        """Start loading."""

    def send(self, frame: Frame) -> None:
        """Hand over a frame."""

    async def receive(self) -> Frame | None:
        """Return the next frame; None: dead."""

    async def end(self, *, gently: float = 0.0) -> int | None:
        """End it."""


class Observer(Protocol):
    """Who is told what happens: the metrics."""

    def cancelled(self, where: Literal["waiting", "running"]) -> None:
        """A job was given up by the one who asked."""

    def finished(self, job: Job, done: Frame) -> None:
        """A job was answered."""

    def restarted(self, reason: Restart) -> None:
        """An engine ended that should not have."""

    def verified(self, ok: bool) -> None:
        """An engine compared its weights with what they were."""


@dataclass(eq=False)
class _Engine:
    link: Link
    jobs: list[Job] = field(default_factory=list)
    """That it is at: one, and those that share its adapted state."""
    first: int = 0
    """The number of the one."""
    heard: float = 0.0
    """When it was last heard, or given a job."""
    stalled: bool = False


class Dispatcher:
    """Queue and engines."""

    def __init__(
        self,
        loads: Frame,
        config: ServeConfig,
        observer: Observer,
        *,
        link: Callable[[Frame, HeldWeights | None], Link] = EngineLink,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe queue and engines; `start` starts them.

        Args:
            loads: what each engine loads: `recipe`, `name` and `verify_every`, see `engines.process.main`.
            config: limits.
            observer: is told what happens.
            link: makes the link to an engine from what it loads and the weights that engines share.
            clock: seconds.

        Raises:
            ConfigError: experts are to be trained for a model in less than float32, or for a cluster.
        """
        if config.train_when_idle and names_cluster(loads["recipe"]["datastore"]):
            raise ConfigError("train_when_idle must be off for a cluster, which has no experts, got on")
        if config.train_when_idle and loads["recipe"]["dtype"] != "float32":
            raise ConfigError(
                "dtype must be float32 with train_when_idle, because experts are of the weights in it, got "
                f"{loads['recipe']['dtype']}"
            )
        self.config = config
        self.costs = Costs()
        self.line = Line(
            max_jobs=config.max_queue, max_seconds=config.max_queue_seconds, clock=clock, engines=config.engines
        )
        self.facts: Frame | None = None
        """What the first engine said of itself; None while it loads."""
        self.failure: str | None = None
        """Why no engine can be started at all."""
        self.settled = asyncio.Event()
        """Set when the first engine is ready."""
        self.failed = asyncio.Event()
        """Set with `failure`."""
        self._what = loads
        self._observer = observer
        self._link = link
        self._clock = clock
        self._weights: HeldWeights | None = None
        self._engines: list[_Engine] = []
        self._draining = False
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._idle_training = IdleTraining(idle_command(loads["recipe"])) if config.train_when_idle else None

    # --- for those who ask ---

    def not_ready(self) -> str | None:
        """Return why no request should be sent now: loading, draining, engine_dead, stalled; None: it may."""
        if self._draining:
            return "draining"
        if self.facts is None:
            return "loading" if self.failure is None else "engine_dead"
        if any(engine.stalled for engine in self._engines):
            return "stalled"
        return None if self._engines else "engine_dead"

    @property
    def engines_up(self) -> int:
        """Engines that are ready or at work."""
        return len(self._engines)

    def submit(self, job: Job) -> None:
        """Let a job wait for an engine; its answers come out of the job.

        Raises:
            Refused: it is not let in.
        """
        if self._draining:
            raise Refused(503, "draining", "the server is shutting down", retry_after=10)
        if self.facts is None:
            raise Refused(503, "loading", "the model is still loading", retry_after=5)
        deadline = None if job.deadline_ms is None else self._clock() + job.deadline_ms / 1000
        beside = self.costs.predict(replace(job.work, adaptations=0, neighbors=0, merges=0))
        place = Place(self.costs.predict(job.work), deadline, job, job.shares, beside)
        self.line.add(place)
        job.place = place
        self._idle.clear()
        if self._idle_training is not None:
            self._idle_training.pause()
        self._feed()

    def cancel(self, job: Job) -> None:
        """Give a job up: out of the line at once, or at the engine's next step or token."""
        if job.cancelled or job.place is None:
            return
        if self.line.leave(job.place):
            job.cancelled = True
            self._observer.cancelled("waiting")
            self._look()
        for engine in self._engines:
            if job in engine.jobs:
                job.cancelled = True
                self._observer.cancelled("running")
                engine.link.send({"cancel": job.number})

    def tell(self, job: Job, frame: Frame) -> None:
        """Tell the engine that runs a job something about it; lost where none does any more."""
        for engine in self._engines:
            if job in engine.jobs:
                engine.link.send({"to": job.number, **frame})

    # --- life ---

    def start(self) -> None:
        """Start the engines, in the running event loop; nothing where they are started already."""
        if all(task.done() for task in self._tasks):
            self._draining = self._closing = False
            self._tasks = [asyncio.create_task(self._keep(number)) for number in range(self.config.engines)]
            if self._idle_training is not None:
                self._tasks.append(asyncio.create_task(self._train_while_idle(self._idle_training)))

    async def drain(self, timeout: float) -> None:
        """Let nobody in, finish what there is within `timeout` seconds, and cancel the rest at its next step."""
        self._draining = True
        if await self._empties(timeout):
            return
        gone = Refused(503, "draining", "the server is shutting down", retry_after=10)
        while self.line.waiting:
            for place in self.line.next():
                self.line.done(place)
                place.job.put(gone)
        for engine in self._engines:
            for job in engine.jobs:
                job.gone = gone
                engine.link.send({"cancel": job.number})
        self._look()
        await self._empties(2 * self._patience())

    async def close(self) -> None:
        """End the engines: gently those that have nothing to do."""
        self._draining = self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        close_weights(self._weights)
        self._weights = None

    async def _empties(self, timeout: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def _look(self) -> None:
        if not self.line.waiting and not self.line.running:
            self._idle.set()

    # --- engines ---

    async def _keep(self, number: int) -> None:
        """Keep one engine alive, until the server closes or it is known that none can be started."""
        if number > 0:
            await self.settled.wait()  # the first one makes the weights that all share
        pause = 1.0
        while self.failure is None:
            engine = _Engine(self._link(self._what, self._weights))
            try:
                await engine.link.start()
                if await self._loads(engine.link):
                    pause = 1.0
                    self._engines.append(engine)
                    self.settled.set()
                    self._feed()
                    self._observer.restarted(await self._listen(engine))
            finally:
                ending = asyncio.ensure_future(self._end(engine))
                try:
                    await asyncio.shield(ending)
                except asyncio.CancelledError:
                    await ending  # whole, so that nothing of the engine stays open
                    raise
            if engine.link.facts is None and self.failure is None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _train_while_idle(self, training: IdleTraining) -> None:
        """Train experts from when the first engine is ready; nothing where none can be started."""
        waits = {asyncio.ensure_future(event.wait()) for event in (self.settled, self.failed)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.failure is None:
            await training.keep(self._idle)

    async def _end(self, engine: _Engine) -> None:
        """Take an engine out, whatever it is at."""
        if engine in self._engines:
            self._engines.remove(engine)
        jobs, engine.jobs = engine.jobs, []
        for job in jobs:
            assert job.place is not None
            self.line.done(job.place)
            job.put(job.gone or of_engine({"kind": "died", "message": "the engine ended while it answered this"}))
        if jobs:
            self._look()
        await engine.link.end(gently=_GENTLY if self._closing and not jobs else 0.0)

    async def _loads(self, link: Link) -> bool:
        """Wait until an engine is ready; False where it will not be."""
        frame = await link.receive()
        if frame is None or frame["event"] != "ready":
            if self.facts is None:
                self._fail("the engine process ended while it loaded" if frame is None else str(frame["message"]))
            return False
        facts: Frame = frame["facts"]
        if self.facts is None:
            self.facts, self._weights = facts, link.weights
        elif facts["model"]["digest"] != self.facts["model"]["digest"]:
            self._fail(
                "model must be the one that was served before, but its files have changed. Start the server anew"
            )
            return False
        self.costs.saw(frame["spent"])
        return True

    def _fail(self, message: str) -> None:
        self.failure = message
        self.failed.set()

    def _feed(self) -> None:
        """Give engines that have nothing to do what waits."""
        for engine in self._engines:
            if not engine.jobs and self.line.waiting:
                places = self.line.next()
                engine.jobs, engine.heard = [place.job for place in places], self._clock()
                frame, *joined = map(self._frame, places)
                engine.first = frame["job"]
                engine.link.send({**frame, "joined": joined} if joined else frame)

    def _frame(self, place: Place) -> Frame:
        """Return what the engine is told of a job that it is given."""
        job: Job = place.job
        now = self._clock()
        job.queue_seconds = now - place.arrived
        left = None if place.deadline is None else max(0.0, 1000 * (place.deadline - now))
        return {"job": job.number, "task": job.task, "deadline_ms": left, **job.payload}

    def _put_back(self, jobs: list[Job]) -> None:
        """Let jobs wait again that shared the state of one that came to none."""
        for job in jobs:
            assert job.place is not None
            if job.gone is None and not job.cancelled:
                self.line.put_back(job.place)
                continue
            self.line.done(job.place)
            job.put(job.gone or {"event": "done", "result": {"cancelled": True}})
        self._look()
        self._feed()

    async def _listen(self, engine: _Engine) -> Restart:
        """Hear an engine until it has to be replaced; return why."""
        receiving = asyncio.ensure_future(engine.link.receive())
        try:
            while True:
                patience = self._patience()
                done, _ = await asyncio.wait({receiving}, timeout=patience / 4)
                silent = self._clock() - engine.heard if engine.jobs else 0.0
                if not done:
                    engine.stalled = silent > patience
                    if silent > 2 * patience:
                        return "stalled"
                    continue
                frame = receiving.result()
                if frame is None:
                    return "died"
                engine.heard, engine.stalled = self._clock(), False
                if not self._hear(engine, frame):
                    return "unsound"
                receiving = asyncio.ensure_future(engine.link.receive())
        finally:
            receiving.cancel()

    def _hear(self, engine: _Engine, frame: Frame) -> bool:
        """Act upon a frame; False where the engine may not be used any more."""
        if frame["event"] == "verified":
            self._observer.verified(frame["ok"])
            return bool(frame["ok"])
        if frame["event"] == "beat":
            return True
        if frame["event"] == "free":
            if frame["job"] != engine.first:
                return True  # all of them were answered, and it has other work already
            jobs, engine.jobs = engine.jobs, []
            self._put_back(jobs)
            return True
        job = next((job for job in engine.jobs if job.number == frame["job"]), None)
        if job is None or job.place is None:
            return True
        if frame["event"] not in ("done", "error"):
            job.put(frame)
            return True
        assert job.place.began is not None
        job.actual_seconds = self._clock() - job.place.began
        engine.jobs.remove(job)
        self.line.done(job.place)
        self.costs.saw(frame["spent"])
        if frame["event"] == "error":
            job.put(job.gone or of_engine(frame["error"]))
        elif job.gone is not None:
            job.put(job.gone)
        else:
            job.put(frame)
        self._observer.finished(job, frame)
        self._look()
        self._feed()
        return True

    def _patience(self) -> float:
        """Seconds without a word after which an engine at work is not well: many of its longest steps."""
        longest = 0 if self.facts is None else self.facts["limits"]["window"]
        return max(self.config.stall_seconds, _STEPS_OF_PATIENCE * longest * self.costs.each("train"))
