"""What an encoder's files say about embedding: how token states are pooled, and how long a text is read.

Knows the layouts of transformers and sentence-transformers, and fetches hub ids; does not know how texts are embedded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from .. import models
from ..config import EmbedConfig
from ..errors import ConfigError, UnknownModelError


class EncoderFiles(NamedTuple):
    """What a model directory says about embedding."""

    folder: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None


def encoder_directory(name: str) -> Path:
    """Return the directory of a name: itself, or that of a hub id, fetched where it is not at hand.

    Raises:
        UnknownModelError: it is neither a directory nor a hub id in reach.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*/config.json"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*patterns, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "*.bin"]))
    except Exception as problem:
        raise UnknownModelError(
            f"model must be a demo name ({', '.join(models.DEMO_MODELS)}), a directory or a hub id in reach, "
            f"got {name!r}: {str(problem).splitlines()[0]}"
        ) from problem
    return folder


def read_encoder_files(directory: Path) -> EncoderFiles:
    """Read a sentence-transformers directory's modules; a plain transformers directory has none."""
    listing = directory / "modules.json"
    if not listing.is_file():
        return EncoderFiles(str(directory))
    files = EncoderFiles(str(directory))
    for module in json.loads(listing.read_text()):
        kind, folder = str(module["type"]).rsplit(".", 1)[-1], directory / module["path"]
        if kind == "Transformer":
            limit = folder / "sentence_bert_config.json"
            found = json.loads(limit.read_text()).get("max_seq_length") if limit.is_file() else None
            files = files._replace(folder=str(folder), max_length=found)
        elif kind == "Pooling":
            files = files._replace(pooling=_pooling_of(folder / "config.json"))
        elif kind == "Normalize":
            files = files._replace(normalize=True)
        else:
            raise ConfigError(f"{listing}: module must be Transformer, Pooling or Normalize, got {kind}")
    return files


def _pooling_of(path: Path) -> str:
    fields = json.loads(path.read_text())
    modes = [
        name.removeprefix("pooling_mode_") for name, on in fields.items() if name.startswith("pooling_mode_") and on
    ]
    if isinstance(fields.get("pooling_mode"), str):
        modes = [fields["pooling_mode"]]
    names = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise ConfigError(f"{path}: pooling must be mean or cls, got {' and '.join(modes) or 'none'}")
    return names[modes[0]]


def longest_text(model: Any, tokenizer: Any, config: EmbedConfig, files: EncoderFiles) -> int:
    """Return how many tokens of a text are read, special tokens included: as asked for, or as the files say.

    Raises:
        ConfigError: more are asked for than the encoder has positions for.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        positions -= first_position(model)
    if config.max_length is not None:
        if positions and config.max_length > positions:
            raise ConfigError(f"max_length must be at most {positions} (the encoder's limit), got {config.max_length}")
        return config.max_length
    stated = files.max_length or getattr(tokenizer, "model_max_length", None)
    limits = [int(limit) for limit in (stated, positions) if limit and limit < 1_000_000]
    return min(limits) if limits else 512


def first_position(model: Any) -> int:
    """Return the position id of a text's first token: RoBERTa counts from behind its padding's."""
    embeddings = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    unused = getattr(embeddings, "padding_idx", None)
    return 0 if unused is None else int(unused) + 1
