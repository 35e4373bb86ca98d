"""Test-time training on nearest neighbors.

For each query: find its nearest documents, train the language model on them for a moment, answer, and put every weight
back. Names that need torch or transformers load on first use.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import models
from .config import (
    PRESETS,
    AdaptConfig,
    DatastoreConfig,
    EmbedConfig,
    EvalConfig,
    IndexConfig,
    ScoreConfig,
    ServeConfig,
    StoreConfig,
    preset,
)
from .errors import (
    AdaptError,
    ClusterError,
    ConfigError,
    DatastoreLockedError,
    DatastoreMismatchError,
    DeviceError,
    EmbeddingError,
    IndexCorruptError,
    MissingExtraError,
    NonFiniteLossError,
    RefusedError,
    RestoreError,
    StoreCorruptError,
    StoreError,
    StoreVersionError,
    TttnnError,
    UnknownModelError,
)
from .version import __version__

if TYPE_CHECKING:
    from .cli.bars import Bars
    from .cluster.cluster_datastore import ClusterDatastore
    from .datastore.datastore import Datastore
    from .datastore.index import NeighborIndex
    from .dispatch.async_trainer import AsyncTrainer
    from .embedding.embedder import Embedder
    from .evaluation.result_file import read_results
    from .evaluation.runner import evaluate
    from .recipe import TrainerRecipe
    from .retrieval.neighbors import Neighbor
    from .retrieval.retriever import Retriever
    from .store.corpus import iter_corpus, iter_jsonl, iter_parquet
    from .store.document import Document, text_digest
    from .store.text_store import TextStore
    from .store.writer import TextStoreWriter
    from .training.adapted_model import AdaptedModel
    from .training.report import AdaptReport
    from .training.trainer import TestTimeTrainer
    from .weights.arena import WeightArena
    from .weights.shared_weights import SharedWeights

_LAZY = {
    "AdaptReport": "training.report",
    "AdaptedModel": "training.adapted_model",
    "AsyncTrainer": "dispatch.async_trainer",
    "Bars": "cli.bars",
    "ClusterDatastore": "cluster.cluster_datastore",
    "Datastore": "datastore.datastore",
    "Document": "store.document",
    "Embedder": "embedding.embedder",
    "Neighbor": "retrieval.neighbors",
    "NeighborIndex": "datastore.index",
    "Retriever": "retrieval.retriever",
    "SharedWeights": "weights.shared_weights",
    "TestTimeTrainer": "training.trainer",
    "TextStore": "store.text_store",
    "TextStoreWriter": "store.writer",
    "TrainerRecipe": "recipe",
    "WeightArena": "weights.arena",
    "evaluate": "evaluation.runner",
    "iter_corpus": "store.corpus",
    "iter_jsonl": "store.corpus",
    "iter_parquet": "store.corpus",
    "read_results": "evaluation.result_file",
    "text_digest": "store.document",
}

__all__ = [
    "PRESETS",
    "AdaptConfig",
    "AdaptError",
    "AdaptReport",
    "AdaptedModel",
    "AsyncTrainer",
    "Bars",
    "ClusterDatastore",
    "ClusterError",
    "ConfigError",
    "Datastore",
    "DatastoreConfig",
    "DatastoreLockedError",
    "DatastoreMismatchError",
    "DeviceError",
    "Document",
    "EmbedConfig",
    "Embedder",
    "EmbeddingError",
    "EvalConfig",
    "IndexConfig",
    "IndexCorruptError",
    "MissingExtraError",
    "Neighbor",
    "NeighborIndex",
    "NonFiniteLossError",
    "RefusedError",
    "RestoreError",
    "Retriever",
    "ScoreConfig",
    "ServeConfig",
    "SharedWeights",
    "StoreConfig",
    "StoreCorruptError",
    "StoreError",
    "StoreVersionError",
    "TestTimeTrainer",
    "TextStore",
    "TextStoreWriter",
    "TrainerRecipe",
    "TttnnError",
    "UnknownModelError",
    "WeightArena",
    "__version__",
    "evaluate",
    "iter_corpus",
    "iter_jsonl",
    "iter_parquet",
    "models",
    "preset",
    "read_results",
    "text_digest",
]

logging.getLogger("tttnn").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tttnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
