"""AsyncTrainer: the library's answers out of engine processes, given up anywhere, refused by name, ended any time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.served import NAME, QUERY, WAIT, save_everything, teach

DOCUMENTS = 150
CONFIG = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32")
LIMITS = tttnn.ServeConfig(verify_every=1, max_queue=2, max_queue_seconds=100_000.0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> tttnn.TrainerRecipe:
    made = tmp_path_factory.mktemp("async")
    save_everything(made, tokenizer, documents=DOCUMENTS)
    teach(made / NAME, tokenizer)
    return tttnn.TrainerRecipe(str(made / NAME), str(made / "store"), CONFIG, threads=1)


class Loop:
    """An event loop in a thread, with a trainer that was started in it."""

    def __init__(self, recipe: tttnn.TrainerRecipe) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.trainer = tttnn.AsyncTrainer(recipe, LIMITS)
        self.run(self.trainer.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, WAIT), self._loop).result()

    def close(self) -> None:
        self.run(self.trainer.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def loop(recipe: tttnn.TrainerRecipe) -> Iterator[Loop]:
    made = Loop(recipe)
    yield made
    made.close()
    assert engines() == []


@pytest.fixture(scope="module")
def expected(recipe: tttnn.TrainerRecipe) -> tuple[str, str, float]:
    """What the library says: two texts and bits per byte."""
    import torch

    before = torch.get_num_threads()
    trainer = recipe.load()
    with trainer.adapt(QUERY) as adapted:
        said = adapted.generate(max_new_tokens=20), adapted.generate("A dog", max_new_tokens=6, stop=["D"])
        bits = adapted.bits_per_byte("sat on it", context="the dog")
    trainer.release()
    torch.set_num_threads(before)
    return *said, bits


@pytest.fixture
def canary(loop: Loop, expected: tuple[str, str, float]) -> Iterator[None]:
    """Afterwards the trainer has nothing left of what was before, and answers as ever."""
    yield

    async def asked() -> str:
        async with loop.trainer.adapt(QUERY) as adapted:
            assert (loop.trainer.waiting, loop.trainer.running) == (0, 1)
            return str(await adapted.generate(max_new_tokens=20))

    assert loop.run(asked()) == expected[0]


def engines() -> list[int]:
    command = ["pgrep", "-P", str(os.getpid()), "-f", "tttnn.engines.process"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_block_says_what_the_library_says(loop: Loop, expected: tuple[str, str, float]) -> None:
    async def test() -> None:
        async with loop.trainer.adapt(QUERY) as adapted:
            pieces = [piece async for piece in adapted.stream(max_new_tokens=20)]
            assert len(pieces) > 1
            assert "".join(pieces) == expected[0]
            assert await adapted.generate("A dog", max_new_tokens=6, stop=["D"]) == expected[1]
            assert await adapted.bits_per_byte("sat on it", context="the dog") == pytest.approx(expected[2], rel=1e-9)
            assert len(adapted.report["neighbors"]) == 3
            assert "restore" not in adapted.report["seconds"]
        assert adapted.report["seconds"]["restore"] > 0
        assert len(adapted.report["generations"]) == 2
        with pytest.raises(tttnn.AdaptError, match="inside its block"):
            await adapted.generate()

    loop.run(test())


def test_a_wrong_argument_and_a_stream_that_is_left_end_nothing_else(
    loop: Loop, expected: tuple[str, str, float], canary: None
) -> None:
    async def test() -> None:
        async with loop.trainer.adapt(QUERY) as adapted:
            with pytest.raises(ValueError, match="max_new_tokens must be between 1 and 255"):
                await adapted.generate(max_new_tokens=256)
            with pytest.raises(ValueError, match="temperature must be 0 or more"):
                await adapted.generate(temperature=-1.0)
            async for _ in adapted.stream("one", max_new_tokens=200):
                break
            left = adapted.stream("two", max_new_tokens=200)
            await anext(left)
            assert await adapted.generate(max_new_tokens=20) == expected[0]
            with pytest.raises(tttnn.AdaptError, match="which has ended it"):
                [piece async for piece in left]
        made = [row["tokens"] for row in adapted.report["generations"]]
        assert made[0] < 200
        assert made[1] < 200

    loop.run(test())


def test_calls_of_a_block_follow_each_other(loop: Loop, canary: None) -> None:
    async def test() -> None:
        async with loop.trainer.adapt(QUERY) as adapted:
            first = asyncio.ensure_future(adapted.generate(max_new_tokens=100))
            await asyncio.sleep(0)
            with pytest.raises(tttnn.AdaptError, match="follow each other"):
                await adapted.generate(max_new_tokens=100)
            assert await first

    loop.run(test())


@pytest.mark.parametrize("where", ["training", "writing", "scoring", "idle"])
def test_a_task_that_is_cancelled_gives_its_query_up(loop: Loop, canary: None, where: str) -> None:
    async def test() -> None:
        reached = asyncio.Event()
        written = 0

        async def asked() -> None:
            nonlocal written
            neighbors = DOCUMENTS if where == "training" else 1
            async with loop.trainer.adapt(QUERY, num_neighbors=neighbors) as adapted:
                assert where != "training"
                if where == "idle":
                    reached.set()
                    await asyncio.Event().wait()
                if where == "scoring":
                    reached.set()
                    await adapted.bits_per_byte("a long text " * 20_000)
                async for _ in adapted.stream(max_new_tokens=240):
                    written += 1
                    reached.set()

        task = asyncio.ensure_future(asked())
        if where == "training":
            await until(lambda: loop.trainer.running)
        else:
            await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert written < 240

    loop.run(test())


def test_a_task_that_is_cancelled_in_the_line_never_has_an_engine(loop: Loop, canary: None) -> None:
    async def test() -> None:
        entered: list[str] = []

        async def asked(name: str) -> None:
            async with loop.trainer.adapt(QUERY):
                entered.append(name)

        async with loop.trainer.adapt(QUERY):
            gone, stays = (asyncio.ensure_future(asked(name)) for name in ("gone", "stays"))
            await until(lambda: loop.trainer.waiting == 2)
            gone.cancel()
            await asyncio.wait({gone})
            assert loop.trainer.waiting == 1
        await stays
        assert entered == ["stays"]

    loop.run(test())


def test_what_is_refused_says_why(loop: Loop, canary: None) -> None:
    async def refused(**asked: Any) -> tttnn.RefusedError:
        with pytest.raises(tttnn.RefusedError) as told:
            async with loop.trainer.adapt(QUERY, **asked):
                pass
        return told.value

    async def test() -> None:
        said = await refused(deadline_ms=1, reserve_tokens=200)
        assert (said.code, said.retry_after is not None) == ("would_miss_deadline", True)
        async with loop.trainer.adapt(QUERY):
            waiting = [asyncio.ensure_future(refused()) for _ in range(3)]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result().code for task in done] == ["queue_full"]
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        with pytest.raises(tttnn.ConfigError, match="tttnn precompute"):
            async with loop.trainer.adapt(QUERY, mode="instant"):
                pass
        with pytest.raises(tttnn.ConfigError, match=r"^where\.source must name sources"):
            async with loop.trainer.adapt(QUERY, sources=["nowhere"]):
                pass
        with pytest.raises(tttnn.ConfigError, match="num_neighbors must be"):
            loop.trainer.adapt(QUERY, num_neighbors=-1)
        with pytest.raises(ValueError, match="query must hold some text"):
            loop.trainer.adapt(" ")

    loop.run(test())


def test_a_stream_ends_at_the_deadline(loop: Loop, canary: None) -> None:
    async def test() -> None:
        deadline_ms = 5000
        async with loop.trainer.adapt(QUERY, num_neighbors=1, deadline_ms=deadline_ms) as adapted:
            await asyncio.sleep(deadline_ms / 1000)
            await adapted.generate(max_new_tokens=100)
        (made,) = adapted.report["generations"]
        assert (made["tokens"], made["ended_by"]) == (1, "callback")

    loop.run(test())


def test_an_engine_that_dies_takes_its_own_query_only(loop: Loop, canary: None) -> None:
    async def test() -> None:
        async def other() -> str:
            async with loop.trainer.adapt(QUERY) as adapted:
                return str(await adapted.generate(max_new_tokens=4))

        async def killed() -> None:
            async with loop.trainer.adapt(QUERY) as adapted:
                waits.append(asyncio.ensure_future(other()))
                async for _ in adapted.stream(max_new_tokens=240):
                    for engine in engines():
                        os.kill(engine, signal.SIGKILL)

        waits: list[asyncio.Future[str]] = []
        with pytest.raises(tttnn.RefusedError) as told:
            await killed()
        assert told.value.code == "engine_died"
        assert await waits[0]

    loop.run(test())


def test_a_trainer_belongs_to_the_loop_that_started_it(
    loop: Loop, recipe: tttnn.TrainerRecipe, expected: tuple[str, str, float]
) -> None:
    async def elsewhere() -> None:
        with pytest.raises(tttnn.AdaptError, match="event loop that started it"):
            async with loop.trainer.adapt(QUERY):
                pass

    asyncio.run(elsewhere())
    own = tttnn.AsyncTrainer(recipe)

    async def asked(trainer: tttnn.AsyncTrainer) -> str:
        async with trainer.adapt(QUERY) as adapted:
            return await adapted.generate(max_new_tokens=20)

    async def here() -> str:
        with pytest.raises(tttnn.AdaptError, match="must be started"):
            await asked(own)
        async with own:
            return await asked(own)

    # One trainer in each of two loops at once, and one that is closed starts again in another loop.
    other = asyncio.run_coroutine_threadsafe(asked(loop.trainer), loop._loop)
    assert asyncio.run(here()) == expected[0]
    assert other.result(WAIT) == expected[0]
    assert asyncio.run(here()) == expected[0]


def test_closing_ends_what_runs_and_what_waits(recipe: tttnn.TrainerRecipe) -> None:
    before = engines()

    async def test() -> None:
        trainer = await tttnn.AsyncTrainer(recipe, LIMITS).start()
        with pytest.raises(tttnn.AdaptError, match="must be started once"):
            await trainer.start()

        async def asked(work: Any) -> str:
            with pytest.raises(tttnn.RefusedError) as told:
                async with trainer.adapt(QUERY) as adapted:
                    await work(adapted)
            return told.value.code

        async def writes(adapted: Any) -> None:
            while True:
                await adapted.generate(max_new_tokens=240)

        busy = asyncio.ensure_future(asked(writes))
        await until(lambda: trainer.running)
        waits = asyncio.ensure_future(asked(writes))
        await until(lambda: trainer.waiting)
        await trainer.close()
        assert [await busy, await waits] == ["draining", "draining"]
        assert engines() == before
        await trainer.close()
        with pytest.raises(tttnn.AdaptError, match="must be started"):
            async with trainer.adapt(QUERY):
                pass
        # What runs may be finished first.
        async with trainer:
            async with trainer.adapt(QUERY) as adapted:
                closing = asyncio.ensure_future(trainer.close(timeout=WAIT))
                await asyncio.sleep(0)
                assert await adapted.generate(max_new_tokens=4)
                with pytest.raises(tttnn.RefusedError, match="the trainer is shutting down"):
                    async with trainer.adapt(QUERY):
                        pass
            await closing

    asyncio.run(asyncio.wait_for(test(), WAIT))


def test_a_model_that_cannot_be_loaded_is_said(recipe: tttnn.TrainerRecipe, tmp_path: Path) -> None:
    async def test() -> None:
        async with tttnn.AsyncTrainer(tttnn.TrainerRecipe(str(tmp_path), recipe.datastore)):
            pass

    with pytest.raises(tttnn.TttnnError, match=tmp_path.name):
        asyncio.run(test())


def test_the_program_that_asks_has_no_torch() -> None:
    code = "import sys, tttnn; tttnn.AsyncTrainer; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
