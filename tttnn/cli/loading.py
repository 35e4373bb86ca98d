"""How models are loaded: on which device, in what type, with how many threads, and told while they are fetched.

Knows names, directories and bars. Does not know a command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .. import models
from ..config import AdaptConfig, ClusterConfig, EmbedConfig, ScoreConfig
from .bars import Bars


def quiet_transformers() -> None:
    """Keep the remarks and bars of transformers off standard error."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@dataclass(frozen=True)
class Loading:
    """What the flags say of how models are loaded.

    `device` is torch's name of one, `dtype` the name of the language model's type, `threads` torch's threads (None
    leaves them as they are), `cache_dir` the folder of demo models.
    """

    device: str
    dtype: str
    threads: int | None
    cache_dir: str | os.PathLike[str] | None

    def check(self) -> None:
        """Raise a ConfigError where there is no such device, before anything is loaded."""
        from ..kernels.device import check_device

        check_device(self.device)

    def embedder(self, name: str, config: EmbedConfig | None, bars: Bars) -> Any:
        """Load an embedder by demo name, hub id or directory."""
        from ..embedding.embedder import Embedder

        self.check()
        quiet_transformers()
        self.find(name, bars)
        return Embedder.load(name, config, device=self.device, threads=self.threads, cache_dir=self.cache_dir)

    def datastore(self, path: str, embedder: str | None, bars: Bars, cluster: ClusterConfig | None = None) -> Any:
        """Open a datastore or a cluster with its embedder, or with the one that is named."""
        from .. import recipe

        self.check()
        quiet_transformers()
        return recipe.open_datastore(
            path,
            cluster=cluster,
            embedder=embedder,
            device=self.device,
            threads=self.threads,
            cache_dir=self.cache_dir,
            on_fetch=bars.tell,
        )

    def attach(self, opened: Any, bars: Bars) -> None:
        """Load the embedder of a datastore that is open."""
        from .. import recipe

        self.check()
        quiet_transformers()
        recipe.with_embedder(
            opened, device=self.device, threads=self.threads, cache_dir=self.cache_dir, on_fetch=bars.tell
        )

    def find(self, name: str, bars: Bars) -> None:
        """Fetch a demo model that is not there yet, and raise an UnknownModelError where there is no such model."""
        models.resolve(name, cache_dir=self.cache_dir, on_fetch=bars.tell)

    def language_model(self, name: str, bars: Bars) -> Any:
        """Load a language model, in its own type, and its tokenizer, by demo name, hub id or directory."""
        import torch

        from ..lm.loading import load_model

        self.check()
        quiet_transformers()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        self.find(name, bars)
        model, tokenizer = load_model(name, cache_dir=self.cache_dir)
        return model.to(self.device), tokenizer

    def trainer(self, name: str, datastore: Any, config: AdaptConfig, score: ScoreConfig | None, bars: Bars) -> Any:
        """Load a trainer whose model has a demo name, hub id or directory."""
        import torch

        from ..training.trainer import TestTimeTrainer

        self.check()
        quiet_transformers()
        self.find(name, bars)
        return TestTimeTrainer.load(
            name,
            datastore,
            config,
            score=score,
            device=self.device,
            dtype=getattr(torch, self.dtype),
            threads=self.threads,
            cache_dir=self.cache_dir,
        )
