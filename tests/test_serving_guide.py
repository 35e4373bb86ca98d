"""What the guide tells an operator to write is right: the unit as systemd reads it, the metrics as Prometheus does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.served import ROOT

pytest.importorskip("uvicorn")

from prometheus_client.parser import text_string_to_metric_families

from tttnn.cli.program import app
from tttnn.server.door import OPEN
from tttnn.server.metrics import Metrics
from tttnn.server.serving import listen

GUIDE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def _example(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_one(tmp_path: Path) -> None:
    unit = tmp_path / "tttnn.service"
    # A program that is there: systemd looks.
    unit.write_text(_example("ini").replace("/opt/tttnn/bin/tttnn", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])


def test_the_scrape_brings_a_key_and_finds_every_metric_the_guide_names() -> None:
    (job,) = yaml.safe_load(_example("yaml"))["scrape_configs"]
    assert job["authorization"]["credentials_file"]
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8000"]
    assert job.get("metrics_path", "/metrics") not in OPEN
    metrics = Metrics()
    metrics.answered("/v1/completions", 200, 0.1)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    samples = {sample.name for family in families.values() for sample in family.samples}
    named = set(re.findall(r"`(tttnn_[a-z_]+)", GUIDE))
    assert named
    assert named <= samples | families.keys()
    assert all(family.documentation and family.type != "unknown" for family in families.values())


def test_every_promise_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", GUIDE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 32))
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for number, named in rows:
        tests = re.findall(r"`(test_\w+)`", named)
        assert tests, number
        assert set(tests) <= there, number


def test_nothing_hides_that_a_client_has_left() -> None:
    """Starlette's own base for middleware reads requests ahead, and a route behind it hears of no disconnect."""
    for path in (ROOT / "tttnn" / "server").glob("*.py"):
        assert "BaseHTTPMiddleware" not in path.read_text(encoding="utf-8"), path


def test_it_listens_at_this_machine_alone_unless_told() -> None:
    (host,) = [option for option in app.commands["serve"].params if option.name == "host"]
    assert host.default == "127.0.0.1"
    with listen(host.default, 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
