"""What is wrong with a model's directory, in one sentence: pointers for files, halves, damaged JSON, what is not there.

Knows the forms of model files. Does not know what a model is, nor how it is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

_POINTER = b"version https://git-lfs"
_TOKENIZER = ("tokenizer", "vocab", "spiece", "sentencepiece", ".model")  # one is part of each file's name
_WEIGHTS = (".safetensors", ".bin", ".pt")


def damage_of(folder: Path) -> str | None:
    """Return the first thing that is wrong with the files of a directory, with its remedy; None where none is found.

    Asked after a load has failed: it reads every JSON file, and of weights what says how long they are.
    """
    try:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            damage = _damage_of_file(path)
            if damage is not None:
                return f"{path.name} {damage}"
        return _lack_of({path.name for path in folder.iterdir()})
    except OSError as problem:
        return f"{problem.filename or folder} cannot be read ({problem.strerror})."


def _lack_of(names: set[str]) -> str | None:
    """Say what a directory of these names must hold and does not."""
    if not names & {"config.json", "adapter_config.json"}:
        return "config.json is not there. Give the directory of a model, or fetch it again."
    if not any(word in name for name in names for word in _TOKENIZER):
        return "tokenizer.json is not there, nor another file of a tokenizer. Fetch it again."
    return None


def _damage_of_file(path: Path) -> str | None:
    if path.suffix not in (*_WEIGHTS, ".json", ".model", ".txt"):
        return None
    with open(path, "rb") as file:
        head = file.read(len(_POINTER))
    if head == _POINTER:
        return "is a pointer of Git LFS, not the file itself. Fetch it with: git lfs pull"
    if path.suffix == ".txt":
        return None
    if not head:
        return "is empty. Fetch it again."
    if path.suffix == ".safetensors":
        return _damage_of_safetensors(path)
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:
            return f"is not whole JSON ({problem}). Fetch it again."
    return None


def _damage_of_safetensors(path: Path) -> str | None:
    """Compare the size that a file's header states with its own."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return f"has {size} bytes, which end inside of its header of {length}: it was cut short. Fetch it again."
        try:
            ends = [
                entry["data_offsets"][1] for name, entry in json.loads(file.read(length)).items() if name[:2] != "__"
            ]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            return "has a header that is no JSON of tensors. Fetch it again."
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return f"has {size} bytes, expected {expected}. Fetch it again."
    return None
