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
    RestoreError,
    StoreCorruptError,
    StoreError,
    StoreVersionError,
    TttnnError,
    UnknownModelError,
)
from .version import __version__

if TYPE_CHECKING:
    from .adapt import AdaptedModel, TestTimeTrainer
    from .adaptation_report import AdaptReport
    from .arena import WeightArena
    from .corpus import Document, iter_corpus, iter_jsonl
    from .datastore import Datastore
    from .embed import Embedder
    from .evaluation import evaluate
    from .index import NeighborIndex
    from .neighbors import Neighbor
    from .result_file import read_results
    from .retriever import Retriever
    from .shared import SharedWeights
    from .store import TextStore, TextStoreWriter

_LAZY = {
    "AdaptReport": "adaptation_report",
    "AdaptedModel": "adapt",
    "Datastore": "datastore",
    "Document": "corpus",
    "Embedder": "embed",
    "Neighbor": "neighbors",
    "NeighborIndex": "index",
    "Retriever": "retriever",
    "SharedWeights": "shared",
    "TestTimeTrainer": "adapt",
    "TextStore": "store",
    "TextStoreWriter": "store",
    "WeightArena": "arena",
    "evaluate": "evaluation",
    "iter_corpus": "corpus",
    "iter_jsonl": "corpus",
    "read_results": "result_file",
}

__all__ = [
    "PRESETS",
    "AdaptConfig",
    "AdaptError",
    "AdaptReport",
    "AdaptedModel",
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
    "RestoreError",
    "Retriever",
    "ScoreConfig",
    "SharedWeights",
    "StoreConfig",
    "StoreCorruptError",
    "StoreError",
    "StoreVersionError",
    "TestTimeTrainer",
    "TextStore",
    "TextStoreWriter",
    "TttnnError",
    "UnknownModelError",
    "WeightArena",
    "__version__",
    "evaluate",
    "iter_corpus",
    "iter_jsonl",
    "models",
    "preset",
    "read_results",
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
