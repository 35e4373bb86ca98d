"""A seeded storm: clients that leave, engines that are killed, losses that are NaN, slow readers, deletions.

python -m pytest tests/test_server_storm.py --thorough -s      # 1,000 events, then ten minutes of mixed load
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import Server
from tests.storm import QUEUE, Storm, save_storm

pytest.importorskip("uvicorn")


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))


@pytest.fixture
def server(tmp_path: Path, tokenizer: Any, thorough: bool) -> Iterator[Server]:
    save_storm(tmp_path, tokenizer)
    flags = ("--verify-every", "1", "--comment-seconds", "0.05", "--max-queue", str(QUEUE), "--stall-seconds", "60")
    running = Server(tmp_path, *flags, "--reuse", "2", "--max-queue-seconds", "100000", "--body-seconds", "5")
    yield running
    assert running.stop() == 0


def _told(storm: Storm) -> None:
    print(dict(storm.seen), dict(storm.statuses), dict(storm.codes), "MiB of server and engines:", storm.memory)


def test_a_storm(server: Server, tmp_path: Path, thorough: bool) -> None:
    storm = Storm(server, tmp_path / "store", seed=1)
    storm.run(events=1_000 if thorough else 60, kills=25 if thorough else 2)
    _told(storm)


def test_ten_minutes_of_mixed_load(server: Server, tmp_path: Path, thorough: bool) -> None:
    if not thorough:
        pytest.skip("takes ten minutes: --thorough")
    storm = Storm(server, tmp_path / "store", seed=2)
    storm.run(seconds=600)
    _told(storm)
