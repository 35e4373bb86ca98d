"""What an encoder's files say about embedding: prompt, lower case, pooling, scaling, and how long a text is read.

Knows the layouts of transformers and sentence-transformers, and fetches hub ids. What sentence-transformers would do
for `encode(texts)` is read here or refused by its name. Does not know how texts are embedded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from .. import models
from ..errors import ConfigError, UnknownModelError


class EncoderFiles(NamedTuple):
    """What a model directory says about embedding."""

    folder: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    """Put before every text."""
    include_prompt: bool = True
    """Whether the states of the prompt's tokens are pooled too."""
    truncate_dim: int | None = None
    """Dimensions that are kept of a vector; None: all."""


_CLASSES = re.compile(r"sentence_transformers\.(models|base\.modules|sentence_transformer\.modules)\.([a-z_]+\.)?(\w+)")

_TRANSFORMER_FILES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]

# Fields of a Transformer module that change no vector of `encode` where they have this value, or any.
_ONLY: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_ANY = {
    "max_seq_length",
    "do_lower_case",
    "unpad_inputs",  # how a batch is laid out
    "query_length",  # these three are for `encode` with a task
    "document_length",
    "query_expansion",
}
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}


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
    """Read a sentence-transformers directory's modules and settings; a plain transformers directory has none.

    Raises:
        ConfigError: a file is damaged, or asks for what tttnn does not compute; the message names file and field.
    """
    listing = directory / "modules.json"
    if not listing.is_file():
        return EncoderFiles(str(directory))
    files = EncoderFiles(str(directory), **_read_settings(directory / "config_sentence_transformers.json"))
    kinds = []
    for module in _read_json(listing, list):
        kind, folder = _class_of(module, listing), directory / str(module.get("path", ""))
        kinds.append(kind)
        if kind == "Transformer":
            files = files._replace(folder=str(folder), **_read_transformer(folder))
        elif kind == "Pooling":
            files = files._replace(**_read_pooling(folder / "config.json"))
        elif kind == "Normalize":
            _check_normalize(folder / "config.json")
            files = files._replace(normalize=True)
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & {*kinds[2:]}:
        raise ConfigError(f"{listing}: modules must be Transformer, Pooling and then others, got {', '.join(kinds)}")
    return files


def _class_of(module: Any, listing: Path) -> str:
    """Return the name of a module's class: those of sentence-transformers alone, not others of the same name."""
    name = str(module.get("type") if isinstance(module, dict) else module)
    match = _CLASSES.fullmatch(name)
    kind = match.group(3) if match else name
    if kind not in ("Transformer", "Pooling", "Normalize", "Dropout"):  # the last does nothing but in training
        raise ConfigError(
            f"{listing}: module must be Transformer, Pooling, Normalize or Dropout of sentence-transformers, got {kind}"
        )
    return kind


def _read_settings(path: Path) -> dict[str, Any]:
    fields = _read_json(path, dict) if path.is_file() else {}
    kind = fields.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise ConfigError(f"{path}: model_type must be SentenceTransformer, got {kind}")
    prompts, name = fields.get("prompts") or {}, fields.get("default_prompt_name")
    if name is not None and name not in {"query": "", "document": ""} | prompts:  # these two it has without a file
        raise ConfigError(f"{path}: default_prompt_name must be one of {', '.join(prompts) or 'prompts'}, got {name!r}")
    width = fields.get("truncate_dim")
    if width is not None and not (isinstance(width, int) and width > 0):
        raise ConfigError(f"{path}: truncate_dim must be a whole number above 0, got {width!r}")
    return {"prompt": str(prompts.get(name) or ""), "truncate_dim": width}


def _read_transformer(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _TRANSFORMER_FILES if (folder / name).is_file()), None)
    if path is None:
        return {}
    fields = _read_json(path, dict)
    for name, value in fields.items():
        if value and name not in _ANY and value != _ONLY.get(name):
            raise ConfigError(f"{path}: {name} must be left out, since tttnn does not follow it, got {value!r}")
    limit = fields.get("max_seq_length")
    if limit is not None and not isinstance(limit, int):
        raise ConfigError(f"{path}: max_seq_length must be a whole number or null, got {limit!r}")
    return {"max_length": limit, "lower_case": bool(fields.get("do_lower_case"))}


def _read_pooling(path: Path) -> dict[str, Any]:
    fields = _read_json(path, dict)
    modes = [
        name.removeprefix("pooling_mode_") for name, on in fields.items() if name.startswith("pooling_mode_") and on
    ]
    stated = fields.get("pooling_mode")
    if stated is not None:
        modes = [stated] if isinstance(stated, str) else list(stated)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ConfigError(f"{path}: pooling must be mean or cls, got {' and '.join(modes) or 'none'}")
    return {"pooling": _POOLINGS[modes[0]], "include_prompt": bool(fields.get("include_prompt", True))}


def _check_normalize(path: Path) -> None:
    fields = _read_json(path, dict) if path.is_file() else {}
    for name in ("module_input_name", "module_output_name"):
        if fields.get(name) not in (None, "sentence_embedding"):
            raise ConfigError(f"{path}: {name} must be sentence_embedding, got {fields[name]}")


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise ConfigError(f"{path}: must be there, as modules.json names its folder. Fetch it again.") from problem
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"{path}: must be JSON, but it is damaged ({problem}). Fetch it again.") from problem
    if not isinstance(content, kind):
        raise ConfigError(f"{path}: must be a JSON {'object' if kind is dict else 'array'}, got {content!r:.60}")
    return content
