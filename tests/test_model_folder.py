"""A model directory with damaged files: one sentence that names the directory, the file and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import save_model, tiny_llama
from tests.encoders import save_encoder
from tttnn import models
from tttnn.errors import ConfigError, UnknownModelError
from tttnn.model_folder import damage_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

Damage = Callable[[Path], Any]


def cut(name: str, length: int) -> Damage:
    """Keep so many bytes; of the end, where the number is negative, one leaves so many away."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def changed(name: str, **fields: Any) -> Damage:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))


def replaced(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def without(*words: str) -> Damage:
    """Take away the files in whose names one of the words is."""
    return lambda folder: [path.unlink() for path in folder.iterdir() if any(word in path.name for word in words)]


WEIGHTS = "model.safetensors"
GPTQ = {"quant_method": "gptq", "bits": 4}
DAMAGES: dict[str, tuple[Damage, str]] = {
    "weights are a pointer": (replaced(WEIGHTS, POINTER), r"model.safetensors is a pointer of Git LFS.*git lfs pull"),
    "a tokenizer is a pointer": (replaced("tokenizer.json", POINTER), r"tokenizer.json is a pointer of Git LFS"),
    "half of the weights": (cut(WEIGHTS, -1000), r"model.safetensors has \d+ bytes, expected \d+\. Fetch it again"),
    "part of the header": (cut(WEIGHTS, 100), r"model.safetensors has 100 bytes, which end inside of its header"),
    "no weights": (cut(WEIGHTS, 0), r"model.safetensors is empty"),
    "a header of noise": (replaced(WEIGHTS, b"\x08" + bytes(7) + b"\xff" * 8), "a header that is no JSON of tensors"),
    "half a tokenizer": (cut("tokenizer.json", 300), r"tokenizer.json is not whole JSON"),
    "half a config": (cut("config.json", 40), r"config.json is not whole JSON"),
    "weights of another width": (
        changed("config.json", intermediate_size=128),
        r"must have the shape \(.*128.*\) by config.json, got \(",
    ),
    "no tokenizer": (without("token", "vocab"), "tokenizer.json is not there|its tokenizer.* files are missing"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
    "no weights at all": (without(WEIGHTS), r"model\.safetensors"),
    "a type nobody knows": (changed("config.json", model_type="newmodel9"), "newmodel9"),
    "a quantiser that is missing": (changed("config.json", quantization_config=GPTQ), "(?i)gptq"),
}


@pytest.fixture(params=["encoder", "language model"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def saved(kind: str, folder: Path, tokenizer: Any) -> Path:
    if kind == "encoder":
        return save_encoder(folder)
    save_model(folder, tiny_llama(), tokenizer)
    return folder


def load(kind: str, folder: Path) -> object:
    return tttnn.Embedder.load(folder) if kind == "encoder" else tttnn.TestTimeTrainer.load(str(folder), None)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_sentence_with_the_folder(name: str, kind: str, tmp_path: Path, tokenizer: Any) -> None:
    folder = saved(kind, tmp_path / "m", tokenizer)
    damage, expected = DAMAGES[name]
    damage(folder)
    with pytest.raises((UnknownModelError, ConfigError), match=expected) as caught:
        load(kind, folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_of_a_folder_is_never_run_nor_asked_for(
    kind: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(kind, tmp_path / "m", tokenizer)
    names = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoModelForCausalLM": "code.M"}
    changed("config.json", model_type="newmodel9", auto_map=names)(folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass C: pass\nclass M: pass\n")

    def asked(*_: object) -> str:
        raise AssertionError("it asked")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(UnknownModelError, match="could not be loaded"):
        load(kind, folder)
    assert not (tmp_path / "ran").exists()


def test_whole_folders_have_no_damage(tmp_path: Path) -> None:
    assert damage_of(save_encoder(tmp_path / "m")) is None
    assert "cannot be read" in str(damage_of(tmp_path / "none"))


def test_what_is_not_the_models_fault_passes() -> None:
    for error in (MemoryError(), ConfigError("k"), KeyboardInterrupt()):
        with pytest.raises(type(error)), models.loading("x"):
            raise error
    with (
        pytest.raises(UnknownModelError, match="model 'x' could not be loaded: ZeroDivisionError Demo names"),
        models.loading("x"),
    ):
        raise ZeroDivisionError
