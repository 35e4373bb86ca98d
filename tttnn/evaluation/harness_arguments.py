"""The arguments of the model ``tttnn``, as lm-evaluation-harness gives them: names and texts -> settings -> a trainer.

Knows settings, how text becomes their values, and what they load. Does not know requests, nor lm-evaluation-harness.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import torch

from ..config import AdaptConfig, ScoreConfig, SelectionConfig, preset
from ..errors import ConfigError
from ..recipe import give_experts, open_datastore
from ..retrieval.selector import Selector
from ..settings import Config
from ..training.trainer import TestTimeTrainer

_log = logging.getLogger("tttnn")


def settings_of(settings: dict[str, Any], name: str) -> tuple[AdaptConfig, SelectionConfig, ScoreConfig]:
    """Sort settings by their prefixes, read them by the types of their fields, and make the three configurations."""
    bases: dict[str, Config] = {
        "select_": SelectionConfig(),
        "score_": ScoreConfig(),
        "adapt_": preset(name),
        "": preset(name),
    }
    changes: dict[str, dict[str, Any]] = {"select_": {}, "score_": {}, "adapt_": {}}
    for key, value in settings.items():
        prefix = next(
            prefix
            for prefix, base in bases.items()
            if key.startswith(prefix) and (not prefix or key.removeprefix(prefix) in {f.name for f in fields(base)})
        )
        changes[prefix or "adapt_"][key.removeprefix(prefix)] = value
    return (
        preset(name).with_read(changes["adapt_"]),
        SelectionConfig().with_read(changes["select_"]),
        ScoreConfig().with_read(changes["score_"]),
    )


def trainer_of(
    model: str,
    datastore: str | None,
    settings: dict[str, Any],
    *,
    preset: str,
    embedder: str | None,
    device: str | None,
    dtype: str,
    threads: int | None,
    cache_dir: str | None,
) -> TestTimeTrainer:
    """Load what the arguments name; see `TttnnLM`.

    Raises:
        ConfigError: a setting has an unknown name or a value it may not have, or a datastore is needed.
    """
    config, selection, score = settings_of(settings, preset)
    if config.num_neighbors and datastore is None:
        raise ConfigError(f"datastore must be given where k is above 0, got None and k = {config.num_neighbors}")
    retriever = None
    if datastore is not None:
        opened = open_datastore(
            datastore, embedder=embedder, device=present_device(device), threads=threads, cache_dir=cache_dir
        )
        retriever = Selector(opened, selection)
    trainer = TestTimeTrainer.load(
        model,
        retriever,
        config,
        score=score,
        device=present_device(device),
        dtype=dtype_named(dtype),
        threads=threads,
        cache_dir=cache_dir,
    )
    if datastore is not None:
        give_experts(trainer, opened)
    return trainer


def present_device(device: str | None) -> str:
    """Return the device to use: the harness asks for CUDA where nothing was said."""
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        _log.info("there is no CUDA device here: the CPU is used")
        return "cpu"
    return device or "cpu"


def dtype_named(name: str) -> torch.dtype:
    """Return a floating-point type of torch by its name, with or without ``torch.``.

    Raises:
        ConfigError: it is none.
    """
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point type of torch like float32, got {name!r}")
    return dtype
