"""Experts that are trained while a server is idle: what queries missed, never beside a request; no orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tttnn
from tests.served import NAME, QUERY, Server, save_everything, wait_until
from tttnn.config import ExpertConfig, ServeConfig
from tttnn.datastore.lock import locked
from tttnn.dispatch.async_trainer import AsyncTrainer
from tttnn.dispatch.idle_training import IdleTraining
from tttnn.errors import ConfigError
from tttnn.instant import idle_process
from tttnn.instant.precompute import Precompute
from tttnn.lm.loading import load_model
from tttnn.recipe import TrainerRecipe

pytest.importorskip("starlette", reason="the extra serve is not installed")

WORK = "import os\nwhile True: os.write(1, b'x')"
"""Never ends by itself."""

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="states of processes are read from /proc")


def state_of(process: int) -> str:
    """One letter: R runs, S waits, T is stopped; empty: it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("waited a minute")


@linux
def test_it_runs_while_nothing_is_there_alone_and_ends_with_its_keeper() -> None:
    async def scenario() -> None:
        training, idle = IdleTraining([sys.executable, "-c", WORK], quiet_seconds=0.05), asyncio.Event()
        keeping = asyncio.ensure_future(training.keep(idle))  # a request is there already
        await until(lambda: training.pid is not None and state_of(training.pid) == "T")
        assert training.pid is not None
        idle.set()
        await until(lambda: state_of(training.pid or 0) in ("R", "S"))
        idle.clear()
        training.pause()
        await until(lambda: state_of(training.pid or 0) == "T")
        await asyncio.sleep(0.2)
        assert state_of(training.pid) == "T"  # as long as the request is there
        idle.set()
        training.pause()  # another request, which was answered within the pause
        await until(lambda: state_of(training.pid or 0) in ("R", "S"))
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert state_of(training.pid) == ""

    asyncio.run(scenario())


def test_one_that_ends_by_itself_is_no_fault() -> None:
    async def scenario() -> None:
        training, idle = IdleTraining([sys.executable, "-c", "pass"], quiet_seconds=0.01), asyncio.Event()
        idle.set()
        await asyncio.wait_for(training.keep(idle), 60)
        training.pause()  # nobody is there

    asyncio.run(scenario())


def test_weights_in_less_than_float32_are_refused() -> None:
    recipe = TrainerRecipe("model", "store", dtype="bfloat16")

    async def scenario() -> None:
        await AsyncTrainer(recipe, ServeConfig(train_when_idle=True)).start()

    with pytest.raises(ConfigError, match=r"dtype must be float32 with train_when_idle.*got bfloat16"):
        asyncio.run(scenario())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A datastore with a root, and clusters whose experts are still to be trained."""
    made = tmp_path_factory.mktemp("idle")
    save_everything(made, tokenizer)
    config = ExpertConfig(documents=4, max_length=16, rank=2, cluster_size=4, leaf_documents=2)
    model, words = load_model(str(made / NAME))
    with tttnn.Datastore.open(made / "store") as store:
        report = Precompute(store, model, words, config).run(limit_seconds=0)
    assert report.leaves > 2  # more than a query is near to
    assert report.leaves_there == 0
    return made


def processes_of(server: Server) -> list[int]:
    """The processes that train for a server."""
    command = ["pgrep", "-P", str(server.process.pid), "-f", "tttnn.instant.idle_process"]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]


@linux
def test_a_server_trains_what_its_queries_missed(folder: Path) -> None:
    server = Server(folder, "--train-when-idle")
    try:
        wait_until(lambda: bool(list(folder.glob("store/experts/*/asked.*.bin"))), "somebody who watches")
        (process,) = processes_of(server)
        assert os.getpriority(os.PRIO_PROCESS, process) == 19

        def experts() -> Any:
            reply = server.complete(QUERY, max_tokens=1, tttnn={"mode": "instant"})
            return reply["tttnn"]["adaptations"][0]["report"]["experts"]

        first = experts()
        assert ([used["name"] for used in first["used"]], first["left_out"]) == (["root"], {"untrained": 2})
        manifest = next(folder.glob("store/experts/*/manifest.json"))
        wait_until(lambda: manifest.read_text().count("leaf-") >= 2, "two leaves")
        then = experts()
        assert (len(then["used"]), then["left_out"]) == (3, {})
        assert {used["weight"] for used in then["used"][1:]} != {1.0}
        assert manifest.read_text().count('"leaf-') == 2  # those that were missed, and no others
        assert processes_of(server) == [process]
        # However the server ends, it leaves nothing behind, not even one that is stopped.
        os.kill(process, signal.SIGSTOP)
        wait_until(lambda: state_of(process) == "T", "its stop")
    finally:
        server.process.kill()
        server.ended()
    wait_until(lambda: state_of(process) in ("", "Z"), "its end")
    assert "no experts are trained" not in server.errors()


def test_why_nothing_can_be_trained_is_said_and_no_fault(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (experts,) = folder.glob("store/experts/*")
    threads = torch.get_num_threads()
    try:
        with locked(experts):  # as while tttnn precompute runs
            assert idle_process.main(str(folder / "store"), str(folder / NAME), None) == 1
    finally:
        torch.set_num_threads(threads)
    (record,) = caplog.records
    assert "no experts are trained while the server is idle" in record.message
    assert str(experts) in record.message
