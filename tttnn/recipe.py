"""A datastore with its embedder, and a trainer with both: opened and loaded by their names, in one place.

Knows names and settings. Does not know what is asked of the datastore or of the trainer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from . import models
from .config import AdaptConfig, ScoreConfig, SelectionConfig
from .datastore.datastore import Datastore
from .embedding.embedder import Embedder
from .errors import DatastoreMismatchError
from .retrieval.selector import Selector
from .training.trainer import TestTimeTrainer
from .weights.shared_weights import SharedWeights


def open_datastore(
    path: str | os.PathLike[str],
    *,
    embedder: str | None = None,
    threads: int | None = None,
    cache_dir: str | None = None,
    on_fetch: Callable[[str], None] | None = None,
) -> Datastore:
    """Open a datastore, once, and load the embedder that makes the vectors of queries.

    Args:
        path: The directory.
        embedder: A demo name, hub id or directory; None: the datastore's own. For imported vectors one must be named;
            it is loaded as it is, because nothing is known of the one that made them.
        threads: Torch's, for the embedder; None leaves them as they are.
        cache_dir: Where demo models are kept.
        on_fetch: Called with one sentence before a demo model is fetched.

    Raises:
        FileNotFoundError: There is no datastore.
        DatastoreMismatchError: The embedder is not the one it was built with, or the vectors were imported and none is
            named.
        UnknownModelError: There is no such embedder.
    """
    opened = Datastore.open(path)
    try:
        if opened.foreign and embedder is None:
            raise DatastoreMismatchError(
                f"{opened.path}: embedder must be named, because its vectors were imported: they were made by "
                f"{opened.embedder_name!r}. Name one of {opened.manifest['dim']} dimensions that makes the same "
                "vectors, with --embedder or embedder=."
            )
        name = embedder or opened.embedder_name
        models.resolve(name, cache_dir=cache_dir, on_fetch=on_fetch)
        config = None if opened.foreign else opened.embed_config
        return opened.attach(Embedder.load(name, config, threads=threads, cache_dir=cache_dir))
    except BaseException:
        opened.close()
        raise


@dataclass(frozen=True)
class TrainerRecipe:
    """What a process needs to load a trainer of its own.

    `model` and `embedder` are demo names, hub ids or directories; an embedder of None is the datastore's own.
    `threads` are torch's in each process; None leaves them as they are.
    """

    model: str
    datastore: str
    adapt: AdaptConfig
    selection: SelectionConfig
    score: ScoreConfig
    embedder: str | None = None
    threads: int | None = None
    cache_dir: str | None = None

    def load(
        self, shared_weights: SharedWeights | None = None, *, on_fetch: Callable[[str], None] | None = None
    ) -> TestTimeTrainer:
        """Open the datastore and load embedder and model.

        Args:
            shared_weights: of a trainer that the same recipe made in another process.
            on_fetch: called with one sentence before a demo model is fetched.
        """
        opened = open_datastore(
            self.datastore,
            embedder=self.embedder,
            threads=self.threads,
            cache_dir=self.cache_dir,
            on_fetch=on_fetch,
        )
        models.resolve(self.model, cache_dir=self.cache_dir, on_fetch=on_fetch)
        return TestTimeTrainer.load(
            self.model,
            Selector(opened, self.selection),
            self.adapt,
            score=self.score,
            threads=self.threads,
            cache_dir=self.cache_dir,
            shared_weights=shared_weights,
        )
