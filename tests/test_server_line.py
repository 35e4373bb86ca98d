"""Who waits and who is next, with a clock and an engine of our own: order, bounds, predictions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tttnn.config import ServeConfig

pytest.importorskip("prometheus_client")

from tttnn.dispatch.dispatcher import Dispatcher
from tttnn.dispatch.job import Job
from tttnn.dispatch.line import Line, Place
from tttnn.dispatch.refusals import Refused
from tttnn.engines.cost import Costs, Work
from tttnn.server.metrics import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line_of(clock: Clock, **settings: Any) -> Line:
    return Line(**{"max_jobs": 10, "max_seconds": 100.0, "clock": clock} | settings)


def test_earliest_deadline_first_then_arrival_and_nothing_starves() -> None:
    clock = Clock()
    line = line_of(clock)
    for name, deadline in (("a", None), ("b", None), ("late", 50.0), ("soon", 5.0)):
        line.add(Place(1.0, deadline, name))
    assert [line.next()[0].job for _ in range(2)] == ["soon", "late"]
    # Who came at 0 without a deadline goes before deadlines later than 100.
    clock.now = 60.0
    line.add(Place(1.0, 120.0, "after"))
    assert [line.next()[0].job for _ in range(3)] == ["a", "b", "after"]


def test_a_full_line_says_when_there_will_be_room() -> None:
    clock = Clock()
    line = line_of(clock, max_jobs=2)
    line.add(Place(8.0))
    (running,) = line.next()
    line.add(Place(8.0))
    line.add(Place(8.0))
    clock.now = 3.0
    with pytest.raises(Refused) as told:
        line.add(Place(8.0))
    assert told.value.status == 429
    assert told.value.code == "queue_full"
    # The engine is free at 8: five seconds from now.
    assert float(told.value.headers()["retry-after"]) == 5
    line.done(running)
    line.next()
    line.add(Place(8.0))
    assert (line.waiting, line.running) == (2, 1)


def test_a_long_line_says_when_it_will_be_short_enough() -> None:
    clock = Clock()
    line = line_of(clock, max_seconds=10.0)
    line.add(Place(16.0))
    line.next()
    with pytest.raises(Refused) as told:
        line.add(Place(1.0))
    assert told.value.code == "queue_too_long"
    clock.now = float(told.value.headers()["retry-after"])
    line.add(Place(1.0))


def answered_all(line: Line, clock: Clock) -> None:
    """Let one engine answer all that wait, each as long as it is predicted to take."""
    while line.waiting:
        for place in line.next():
            clock.now += place.predicted if place.leader is None else place.beside
            line.done(place)


@pytest.mark.parametrize("kinds", ["a", "ab", "aabab", "a.a.b", "....", "aaaaaaaaa", "ababab.."])
def test_those_who_share_a_state_wait_as_long_as_they_are_told(kinds: str) -> None:
    """The backlog, and after how long to come again where it is too long: with one engine, to the second."""
    clock = Clock()
    line = line_of(clock, max_seconds=9.0)
    for kind in kinds:
        line._max_seconds = 1000.0
        line.add(Place(10.0, shares=None if kind == "." else kind, beside=1.0))
        line._max_seconds = 9.0
    backlog = line.seconds()
    with pytest.raises(Refused) as told:
        line.add(Place(10.0))
    assert (told.value.code, told.value.retry_after) == ("queue_too_long", backlog - 9.0)
    answered_all(line, clock)
    assert (
        clock.now
        == backlog
        == 10.0 * (len(set(kinds) - {"."}) + kinds.count("."))
        + (len(kinds) - len(set(kinds) - {"."}) - kinds.count("."))
    )


def test_a_full_line_says_when_all_who_share_a_state_are_answered() -> None:
    clock = Clock()
    line = line_of(clock, max_jobs=3)
    for _ in range(3):
        line.add(Place(10.0, shares="a", beside=2.0))
    first, *others = line.next()
    assert len(others) == 2
    for _ in range(3):
        line.add(Place(10.0, shares="a", beside=2.0))
    clock.now = 4.0
    with pytest.raises(Refused) as told:
        line.add(Place(1.0))
    assert told.value.retry_after == 6.0 + 2.0 + 2.0, "the engine takes no other before the last of the three"
    clock.now = 10.0
    line.done(first)
    line.done(others[0])
    with pytest.raises(Refused) as told:
        line.add(Place(1.0))
    assert told.value.retry_after == 2.0


def test_of_two_engines_the_one_that_is_free_first_says_when_to_come_again() -> None:
    line = line_of(Clock(), max_jobs=2, engines=2)
    for _ in range(2):
        line.add(Place(10.0, shares="a", beside=2.0))
    line.next()
    line.add(Place(3.0))
    line.next()
    assert line.running == 3
    for _ in range(2):
        line.add(Place(1.0))
    with pytest.raises(Refused) as told:
        line.add(Place(1.0))
    assert told.value.retry_after == 3.0


def test_one_with_a_deadline_counts_on_nobody_s_sharing() -> None:
    """While it waits, none are taken together: they would be put before others."""
    line = line_of(Clock(), max_seconds=20.0)
    for _ in range(3):
        line.add(Place(10.0, shares="a", beside=1.0))
    assert line.seconds() == 12.0
    with pytest.raises(Refused, match=r"predicted after 31\.00 s"):
        line.add(Place(1.0, 25.0))
    line.add(Place(1.0, 32.0))
    assert line.seconds() == 31.0
    assert [len(line.next()) for _ in range(4)] == [1, 1, 1, 1]


def test_a_deadline_that_would_be_missed_is_refused_and_says_for_what() -> None:
    clock = Clock()
    line = line_of(clock)
    line.add(Place(4.0))
    line.next()
    line.add(Place(4.0))
    line.add(Place(3.0, 8.0, "fits before the other"))
    with pytest.raises(Refused) as told:
        line.add(Place(3.0, 9.0))  # 4 of the running one, 3 of the one before it, 3 of its own
    assert told.value.code == "would_miss_deadline"
    assert told.value.param == "tttnn.deadline_ms"
    assert line.next()[0].job == "fits before the other"


def test_leaving_and_counting() -> None:
    line = line_of(Clock())
    places = [Place(1.0, job=i) for i in range(3)]
    for place in places:
        line.add(place)
    assert line.ahead_of(places[2]) == 2
    assert line.leave(places[0])
    assert not line.leave(places[0])
    assert line.ahead_of(places[2]) == 1
    (first,) = line.next()
    assert not line.leave(first)
    assert (line.waiting, line.running) == (1, 1)
    line.done(first)
    assert line.running == 0
    assert line.seconds() == 1.0


def test_costs_are_medians_of_what_was_seen() -> None:
    costs = Costs()
    assert costs.predict(Work(adaptations=1, neighbors=5, read_tokens=10, new_tokens=10)) == 0.0
    for seconds in (1.0, 1.0, 50.0):
        costs.saw({"train": (seconds, 100.0), "neighbor_tokens": (1000.0, 2.0), "restore": (0.5, 1.0)})
    costs.saw({"write": (0.2, 10.0), "read": (0.0, 0.0)})
    work = Work(adaptations=1, neighbors=3, token_limit=200, new_tokens=5)
    assert costs.predict(work) == pytest.approx(0.5 + 3 * 200 * 0.01 + 5 * 0.02)


class FakeEngine:
    """Answers what it is told to, when it is told to."""

    def __init__(self, recipe: Any, weights: Any) -> None:
        self.facts: Any = None
        self.weights = weights
        self.sent: list[Any] = []
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self.ended = False

    async def start(self) -> None:
        self.frames.put_nowait({"event": "ready", "facts": FACTS, "layout": None, "spent": {"request": (2.0, 1.0)}})

    def send(self, frame: Any) -> None:
        self.sent.append(frame)

    async def receive(self) -> Any:
        frame = await self.frames.get()
        if frame is not None and frame["event"] == "ready":
            self.facts = frame["facts"]
        return frame

    async def end(self, *, gently: float = 0.0) -> int | None:
        self.ended = True
        return 0

    def finish(self, spent: Any = None) -> None:
        number = self.sent[-1]["job"]
        self.frames.put_nowait({"event": "done", "job": number, "result": {}, "spent": spent or {}, "counts": {}})


FACTS = {"model": {"digest": "x"}, "limits": {"window": 16}}


async def dispatched(config: ServeConfig, test: Any) -> None:
    engines: list[FakeEngine] = []

    def link(recipe: Any, weights: Any) -> FakeEngine:
        engines.append(FakeEngine(recipe, weights))
        return engines[-1]

    clock = Clock()
    metrics = Metrics()
    dispatcher = Dispatcher({}, config, metrics, link=link, clock=clock)
    metrics.watch(dispatcher)
    assert dispatcher.not_ready() == "loading"
    with pytest.raises(Refused, match="loading"):
        dispatcher.submit(Job("search", {}, Work()))
    dispatcher.start()
    await dispatcher.settled.wait()
    try:
        await test(dispatcher, engines, clock, metrics)
    finally:
        await dispatcher.close()
    assert all(engine.ended for engine in engines)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_jobs_go_to_the_engine_one_by_one_in_the_line_s_order() -> None:
    async def test(dispatcher: Dispatcher, engines: list[FakeEngine], clock: Clock, metrics: Metrics) -> None:
        (engine,) = engines
        jobs = [Job("search", {"name": i}, Work(), deadline_ms=ms) for i, ms in enumerate((None, None, 20_000.0))]
        for job in jobs:
            dispatcher.submit(job)
        assert [frame["name"] for frame in engine.sent] == [0]
        assert (dispatcher.line.waiting, dispatcher.line.running) == (2, 1)
        clock.now = 3.0
        engine.finish()
        assert await jobs[0].result() == {}
        assert [frame["name"] for frame in engine.sent] == [0, 2]
        # Two seconds were predicted, from the first one's readiness; three it took.
        assert (jobs[0].predicted_seconds, jobs[0].actual_seconds) == (2.0, 3.0)
        assert engine.sent[-1]["deadline_ms"] == 17_000.0
        assert jobs[2].queue_seconds == 3.0
        dispatcher.cancel(jobs[1])
        assert dispatcher.line.waiting == 0
        dispatcher.cancel(jobs[2])
        assert engine.sent[-1] == {"cancel": jobs[2].number}
        engine.sent.pop()
        engine.finish()
        await settle()
        assert dispatcher.line.running == 0
        assert b'tttnn_cancelled_total{where="running"} 1.0' in metrics.text()

    asyncio.run(dispatched(ServeConfig(), test))


def test_jobs_that_share_a_state_go_to_the_engine_together_and_wait_again_where_it_comes_to_none() -> None:
    async def test(dispatcher: Dispatcher, engines: list[FakeEngine], clock: Clock, metrics: Metrics) -> None:
        (engine,) = engines
        work = Work(adaptations=1, neighbors=3)
        shares = (None, "a", "b", "a", None, "a", "b", "a")
        jobs = [Job("answer", {"name": i}, work, shares=key) for i, key in enumerate(shares)]
        for job in jobs:
            dispatcher.submit(job)
        dispatcher.cancel(jobs[7])
        engine.finish()
        await settle()
        frame = engine.sent[-1]
        assert (frame["name"], [other["name"] for other in frame["joined"]]) == (1, [3, 5])
        assert (dispatcher.line.waiting, dispatcher.line.running) == (3, 3)
        assert jobs[3].place is not None
        assert jobs[3].place.leader is jobs[1].place
        assert jobs[3].place.beside == 2.0  # what any request costs beside its work, as the engine said
        # One is answered, one has left, and the state comes to nothing: the third waits where it stood.
        done = {"event": "done", "job": jobs[1].number, "result": {}, "spent": {}, "counts": {}}
        engine.frames.put_nowait(done)
        dispatcher.cancel(jobs[3])
        assert engine.sent.pop() == {"cancel": jobs[3].number}
        await settle()
        assert len(engine.sent) == 2, "the engine is not free before it says so"
        engine.frames.put_nowait({"event": "free", "job": jobs[1].number})
        await settle()
        assert await jobs[1].result() == {}
        assert await jobs[3].result() == {"cancelled": True}
        assert (engine.sent[-1]["name"], [other["name"] for other in engine.sent[-1]["joined"]]) == (2, [6])
        assert jobs[5].place is not None
        assert jobs[5].place.leader is None
        assert [place.job for place in dispatcher.line._waiting] == [jobs[4], jobs[5]]
        # Where all are answered the engine has other work at once, which its last word of them does not end.
        for job in (jobs[2], jobs[6]):
            engine.frames.put_nowait(done | {"job": job.number})
        engine.frames.put_nowait({"event": "free", "job": jobs[2].number})
        await settle()
        assert (engine.sent[-1]["name"], "joined" in engine.sent[-1]) == (4, False)
        assert (dispatcher.line.waiting, dispatcher.line.running) == (1, 1)
        engine.finish()
        assert await jobs[4].result() == {}

    asyncio.run(dispatched(ServeConfig(), test))


def test_an_engine_that_dies_takes_all_that_share_its_state() -> None:
    async def test(dispatcher: Dispatcher, engines: list[FakeEngine], clock: Clock, metrics: Metrics) -> None:
        jobs = [Job("answer", {"name": i}, Work(), shares=key) for i, key in enumerate((None, "a", "a"))]
        for job in jobs:
            dispatcher.submit(job)
        engines[0].finish()
        await settle()
        engines[0].frames.put_nowait(None)
        for job in jobs[1:]:
            with pytest.raises(Refused, match="engine ended"):
                await job.result()
        assert (dispatcher.line.waiting, dispatcher.line.running) == (0, 0)

    asyncio.run(dispatched(ServeConfig(), test))


def test_nobody_with_a_deadline_waits_for_those_who_share() -> None:
    async def test(dispatcher: Dispatcher, engines: list[FakeEngine], clock: Clock, metrics: Metrics) -> None:
        (engine,) = engines
        for i, key in enumerate(("a", "a", "a")):
            dispatcher.submit(Job("answer", {"name": i}, Work(), shares=key))
        dispatcher.submit(Job("answer", {"name": 3}, Work(), deadline_ms=500_000.0))
        for name in (1, 2, 3):
            engine.finish()
            await settle()
            assert (engine.sent[-1]["name"], "joined" in engine.sent[-1]) == (name, False)

    asyncio.run(dispatched(ServeConfig(), test))


def test_an_engine_that_dies_takes_its_own_job_only() -> None:
    async def test(dispatcher: Dispatcher, engines: list[FakeEngine], clock: Clock, metrics: Metrics) -> None:
        jobs = [Job("search", {"name": i}, Work()) for i in range(3)]
        for job in jobs:
            dispatcher.submit(job)
        engines[0].frames.put_nowait(None)
        with pytest.raises(Refused) as told:
            await jobs[0].result()
        assert (told.value.status, told.value.code) == (503, "engine_died")
        while len(engines) < 2 or not engines[1].sent:
            await asyncio.sleep(0)
        assert engines[0].ended
        for job in jobs[1:]:
            engines[1].finish()
            assert await job.result() == {}
        assert b'tttnn_engine_restarts_total{reason="died"} 1.0' in metrics.text()

    asyncio.run(dispatched(ServeConfig(), test))


def test_weights_that_changed_end_the_engine() -> None:
    async def test(dispatcher: Dispatcher, engines: list[FakeEngine], clock: Clock, metrics: Metrics) -> None:
        engines[0].frames.put_nowait({"event": "verified", "ok": True})
        engines[0].frames.put_nowait({"event": "verified", "ok": False})
        while len(engines) < 2 or dispatcher.not_ready() is not None:
            await asyncio.sleep(0)
        assert engines[0].ended
        text = metrics.text()
        assert b'tttnn_verifications_total{result="changed"} 1.0' in text
        assert b'tttnn_engine_restarts_total{reason="unsound"} 1.0' in text

    asyncio.run(dispatched(ServeConfig(), test))


def test_draining_tells_those_who_wait() -> None:
    async def test(dispatcher: Dispatcher, engines: list[FakeEngine], clock: Clock, metrics: Metrics) -> None:
        jobs = [Job("search", {"name": i}, Work()) for i in range(2)]
        for job in jobs:
            dispatcher.submit(job)
        draining = asyncio.create_task(dispatcher.drain(0.0))
        with pytest.raises(Refused, match="shutting down"):
            await jobs[1].result()
        assert dispatcher.not_ready() == "draining"
        assert engines[0].sent[-1] == {"cancel": jobs[0].number}
        engines[0].sent.pop()
        engines[0].finish()
        with pytest.raises(Refused, match="shutting down"):
            await jobs[0].result()
        await draining
        with pytest.raises(Refused, match="shutting down"):
            dispatcher.submit(Job("search", {}, Work()))

    asyncio.run(dispatched(ServeConfig(), test))


# Public interface: dashboards are made of these names.
METRICS = {
    "tttnn_backlog_seconds": ("gauge", set()),
    "tttnn_cancelled": ("counter", {"where"}),
    "tttnn_cost_ratio": ("histogram", set()),
    "tttnn_engine_restarts": ("counter", {"reason"}),
    "tttnn_engines_ready": ("gauge", set()),
    "tttnn_queue_seconds": ("histogram", set()),
    "tttnn_refusals": ("counter", {"code"}),
    "tttnn_request_seconds": ("histogram", {"route"}),
    "tttnn_requests": ("counter", {"route", "status"}),
    "tttnn_requests_running": ("gauge", set()),
    "tttnn_requests_waiting": ("gauge", set()),
    "tttnn_reused": ("counter", set()),
    "tttnn_stage_seconds": ("histogram", {"stage"}),
    "tttnn_tokens": ("counter", {"kind"}),
    "tttnn_verifications": ("counter", {"result"}),
}


def test_names_and_labels_of_metrics() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    metrics = Metrics()
    metrics.watch(Dispatcher({}, ServeConfig(), metrics))
    metrics.answered("/v1/search", 200, 0.1)
    job = Job("search", {}, Work())
    seconds = {"train": 1.0, "something new": 1.0}
    metrics.finished(job, {"event": "done", "result": {"seconds": seconds}, "counts": {"trained": 5, "reused": 1}})
    metrics.refused("a code that nobody knows")
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        found[family.name] = (family.type, labels)
    assert found == METRICS
    assert b"something new" not in metrics.text()
    assert b"nobody knows" not in metrics.text()
