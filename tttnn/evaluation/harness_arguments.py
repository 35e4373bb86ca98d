"""The arguments of the model ``tttnn``, as lm-evaluation-harness gives them: names and texts -> settings, device, type.

Knows settings and how text becomes their values. Does not know requests, nor lm-evaluation-harness.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import torch

from ..config import AdaptConfig, ScoreConfig, SelectionConfig, preset
from ..errors import ConfigError
from ..settings import Config

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
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point type of torch like float32, got {name!r}")
    return found
