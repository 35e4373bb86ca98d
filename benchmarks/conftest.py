"""Options and inputs that the benchmarks share."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from pathlib import Path

import pytest

PILE_MINI = Path(__file__).resolve().parents[2] / "shared" / "data" / "pile-mini"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="small inputs: the answers count, the times mean nothing")
    parser.addoption("--datastore", default=None, help="a datastore whose vectors bench_index searches")


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--smoke"))
