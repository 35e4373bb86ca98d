"""How a trainer is made from names: datastore, embedder, selection and model, opened and loaded in one place.

Knows names and settings. Does not know what is asked of the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import AdaptConfig, ScoreConfig, SelectionConfig
from .datastore.datastore import Datastore
from .embedding.embedder import Embedder
from .retrieval.selector import Selector
from .training.trainer import TestTimeTrainer
from .weights.shared_weights import SharedWeights


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

    def load(self, shared_weights: SharedWeights | None = None) -> TestTimeTrainer:
        """Open the datastore and load embedder and model.

        Args:
            shared_weights: of a trainer that the same recipe made in another process.
        """
        opened = Datastore.open(self.datastore)
        name, config = self.embedder or opened.embedder_name, opened.embed_config
        embedder = Embedder.load(name, config, threads=self.threads, cache_dir=self.cache_dir)
        chosen = Selector(Datastore.open(self.datastore, embedder), self.selection)
        return TestTimeTrainer.load(
            self.model,
            chosen,
            self.adapt,
            score=self.score,
            threads=self.threads,
            cache_dir=self.cache_dir,
            shared_weights=shared_weights,
        )
