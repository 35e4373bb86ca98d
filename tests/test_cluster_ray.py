"""A cluster on Ray: three nodes on this machine, in a process of its own that must end in time."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import ROWS
from tests.json_shapes import differences, read_shapes

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = len(ROWS) + 1500
_SECONDS = 900.0  # until all is ended: other work may share the machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'tttnn[cluster]'"),
]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenarios found; they start Ray once."""
    folder = tmp_path_factory.mktemp("ray")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_scenarios", str(folder)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert process.returncode == 0, (folder / "log").read_text()[-3000:]
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return found


def of(facts: dict[str, Any], name: str) -> Any:
    assert "failed" not in facts[name], facts[name]["failed"]
    return facts[name]


def test_a_build_whose_processes_are_killed_is_as_one_that_was_not(facts: dict[str, Any]) -> None:
    found = of(facts, "build_with_kills")
    assert found["kills"] > 0
    assert (found["documents"], found["same"], found["again"], found["told"]) == (DOCUMENTS, True, True, 3)
    assert found["left"] == ["0000", "0001", "0002"]


def test_a_shard_that_cannot_be_built_is_named_and_the_others_stay(facts: dict[str, Any]) -> None:
    found = of(facts, "failed_build")
    assert "1 of 2 shards could not be built: shard 1 " in found["said"]
    assert "bad.jsonl" in found["said"]
    assert (found["documents"], found["kept"]) == (2, True)
    assert "these differ: shards" in found["other"]


def test_actors_answer_as_one_datastore_and_commands_find_them_by_name(facts: dict[str, Any]) -> None:
    found = of(facts, "answers")
    assert (found["same"], found["compared"]) == (True, 12)
    assert found["nodes"] == [2, 2, 2]  # both replicas of a shard are never on one machine
    assert found["command"] == [True, 3]
    assert found["status"] == [6, True]
    assert "runs already" in found["twice"]


def test_shards_are_added_replaced_and_shrunk_while_they_answer(facts: dict[str, Any]) -> None:
    found = of(facts, "changes")
    assert (found["deleted"], found["gone"]) == (1, True)
    assert (found["added"], found["replaced"]) == (["moon 1 cat new"], ["moon 1 cat newer"])
    assert found["documents"] == [DOCUMENTS, DOCUMENTS]  # one less, one more
    assert found["asked"] > 0
    assert found["wrong"] == []


def test_a_node_that_is_killed_costs_no_answer_its_truth(facts: dict[str, Any]) -> None:
    found = of(facts, "node_lost")
    assert found["wrong"] == 0
    assert found["full"] > found["queries"] // 2
    assert found["healed"] is True


def test_what_was_stopped_says_so_and_what_is_damaged_does_not_begin(facts: dict[str, Any]) -> None:
    found = of(facts, "stopped")
    assert found["stopped"] >= 6
    shapes = read_shapes(ROOT / "docs" / "json.md")
    printed = found["commands"]
    assert sorted(printed) == ["cluster build", "cluster start", "cluster status", "cluster stop"]
    assert [one for name, value in printed.items() for one in differences(value, shapes[name], shapes, name)] == []
    assert "does not run any more" in found["after"]
    assert found["left"] == []
    assert "shard 1 (shards/0001), replica 0: IndexCorruptError: " in found["damaged"]
    assert "no cluster of this name runs" in found["unknown"]
