"""Models and datastores loaded from what flags name, told while they are fetched.

Knows names, directories and bars. Does not know a command.
"""

from __future__ import annotations

from typing import Any

from .. import models
from ..config import AdaptConfig, EmbedConfig, ScoreConfig
from .bars import Bars


def quiet_transformers() -> None:
    """Keep the remarks and bars of transformers off standard error."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_embedder(name: str, config: EmbedConfig | None, threads: int | None, cache_dir: str | None, bars: Bars) -> Any:
    """Load an embedder by demo name, hub id or directory."""
    from ..embedding.embedder import Embedder

    models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
    return Embedder.load(name, config, threads=threads, cache_dir=cache_dir)


def open_datastore(path: str, embedder: str | None, threads: int | None, cache_dir: str | None, bars: Bars) -> Any:
    """Open a datastore with its embedder, or with the one that is named."""
    from .. import recipe

    return recipe.open_datastore(path, embedder=embedder, threads=threads, cache_dir=cache_dir, on_fetch=bars.tell)


def load_trainer(
    name: str,
    datastore: Any,
    config: AdaptConfig,
    score: ScoreConfig | None,
    threads: int | None,
    cache_dir: str | None,
    bars: Bars,
) -> Any:
    """Load a trainer whose model has a demo name, hub id or directory."""
    from ..training.trainer import TestTimeTrainer

    models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
    return TestTimeTrainer.load(name, datastore, config, score=score, threads=threads, cache_dir=cache_dir)
