"""Settings: frozen dataclasses, checked on creation. The only place where a default lives.

Command-line flags are made from these fields, so a flag's name, type, default and help come from here. Knows nothing
of what the settings are used for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError
from .settings import Config, setting

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(stage, done, total)``; ``total`` is None where it is not known."""

Precision = Literal["auto", "float32", "bfloat16"]

ControlTokens = Literal["text", "tokens"]


@dataclass(frozen=True)
class CorpusConfig(Config):
    """How files and folders are read as documents."""

    GROUP = "Corpus"

    text_field: str = setting("text", "field or column that holds the text")
    source_field: str | None = setting(
        None, "field or column that names the source of a document; none: pile_set_name, as in the Pile"
    )
    folder_source: Literal["folder", "suffix", "off"] = setting(
        "folder",
        "source of what is found in a folder or an archive and has none: the first folder of its path, or the suffix",
    )
    include: tuple[str, ...] = setting(
        (), "shell patterns of the files in folders and archives that are read; empty: all"
    )
    exclude: tuple[str, ...] = setting((), "shell patterns of files and folders that are not read")
    max_document_bytes: int = setting(
        64 << 20, "a longer text, line or row is left out; bounds what unpacking may take", minimum=1, maximum=2**30
    )


@dataclass(frozen=True)
class StoreConfig(Config):
    """How a text store is written."""

    GROUP = "Store"

    level: int = setting(6, "zstd compression level", minimum=1, maximum=19)
    dictionary_bytes: int = setting(
        131072, "size of the dictionary trained on the corpus; 0 for none", minimum=0, maximum=2**20
    )
    threads: int = setting(0, "compressor threads; 0 for one per core", minimum=0, maximum=1024)


@dataclass(frozen=True)
class EmbedConfig(Config):
    """How texts become vectors."""

    GROUP = "Embedding"

    pooling: Literal["auto", "mean", "cls"] = setting(
        "auto", "how token states are pooled; auto: as the encoder's files say"
    )
    normalize: Literal["auto", "yes", "no"] = setting(
        "auto", "scale vectors to unit length; auto: what the encoder's files say"
    )
    max_length: int | None = setting(None, "tokens that the encoder reads of a text; none: its own limit", minimum=3)
    truncation: Literal["auto", "right", "left"] = setting(
        "auto", "the side on which a longer text is cut; auto: as the encoder's files say"
    )
    prompt: str = setting("auto", "put before every text; auto: the default prompt of the encoder's files")
    lower_case: Literal["auto", "yes", "no"] = setting(
        "auto", "make texts lower case first; auto: as the encoder's files say"
    )
    truncate_dim: int | None = setting(
        None, "dimensions kept of a vector, after scaling; none: as many as the encoder's files say", minimum=1
    )
    batch_tokens: int = setting(4096, "tokens in a batch, padding included", minimum=1)
    precision: Precision = setting("auto", "arithmetic of the encoder; auto: bfloat16 where the processor has it")


IndexVectors = Literal["float32", "float16", "int8"]
"""What the walk through a graph reads of a vector."""


@dataclass(frozen=True)
class IndexConfig(Config):
    """How vectors are indexed and searched."""

    GROUP = "Index"

    backend: Literal["hnsw", "exact"] = setting("hnsw", "approximate graph search, or exact search")
    metric: Literal["l2", "ip"] = setting("l2", "squared Euclidean distance, or 1 - inner product")
    vectors: IndexVectors = setting(
        "float32",
        "what a search walks on: vectors as they are, or in fewer bytes, and then the nearest are ranked again",
        flag="index_vectors",
    )
    M: int = setting(16, "links per node of the HNSW graph", minimum=2, maximum=512)
    ef_construction: int = setting(200, "width of the search while building", minimum=2, maximum=100_000)
    ef_search: int = setting(128, "smallest width of a search", minimum=1, maximum=1_000_000)


@dataclass(frozen=True)
class DatastoreConfig(Config):
    """How a corpus is cut and laid out."""

    GROUP = "Segments"

    unit: Literal["document", "passage"] = setting(
        "document", "what is embedded: the beginning of each document, or every passage of it", group="common"
    )
    passage_overlap: int = setting(32, "tokens that neighboring passages share", minimum=0, maximum=100_000)
    segment_documents: int = setting(1_000_000, "documents in a segment", minimum=1)
    seed: int = setting(0, "seed of the index's levels", minimum=0)


@dataclass(frozen=True)
class SelectionConfig(Config):
    """Which of the documents near a query are trained on."""

    GROUP = "Selection"

    method: Literal["nearest", "sift", "hull"] = setting(
        "nearest",
        "the nearest ones; sift: the most informative ones, which repeat each other least; hull: those whose weighted "
        "mean comes nearest to the query",
    )
    candidates: int = setting(200, "nearest documents that sift and hull choose from", minimum=1, maximum=1_000_000)
    sift_lambda: float = setting(0.01, "noise that sift assumes; small: avoid repetition more", minimum=1e-9)
    duplicate_radius: float | None = setting(
        None, "leave out documents nearer than this, as near-duplicates of the query; none: keep them", minimum=0
    )
    max_distance: float | None = setting(None, "leave out documents farther than this; none: keep them", minimum=0)


@dataclass(frozen=True)
class AdaptConfig(Config):
    """How a model is trained on the neighbors of one query."""

    GROUP = "Training"

    mode: Literal["exact", "instant", "auto"] = setting(
        "exact",
        "exact: train on neighbors; instant: merge experts (tttnn precompute); auto: merge, and train until a deadline",
        per_call=True,
        group="common",
    )
    context_neighbors: int | None = setting(
        None,
        "neighbors read before the text that is scored or continued; none: 4 with mode=auto, else 0",
        minimum=0,
        maximum=1000,
        per_call=True,
        trains=False,
        group="Experts",
    )
    expert_distance: float | None = setting(
        None,
        "a query whose nearest document is farther than this uses no expert; none: any does",
        minimum=0,
        per_call=True,
        group="Experts",
    )
    leaves: int = setting(
        2,
        "experts of the nearest clusters that are merged beside the root; 0: the root alone",
        minimum=0,
        maximum=1000,
        per_call=True,
        group="Experts",
    )
    leaf_temperature: float = setting(
        0.1,
        "how evenly the nearest clusters share: weights are the softmax of minus half their distance over this",
        minimum=1e-6,
        maximum=1e6,
        per_call=True,
        group="Experts",
    )
    leaf_distance: float | None = setting(
        None,
        "a cluster whose center is farther than this gives no expert; none: any does",
        minimum=0,
        per_call=True,
        group="Experts",
    )
    GONE = {"restore": "weights are always put back by copying"}  # noqa: RUF012

    num_neighbors: int = setting(
        20,
        "neighbors to train on, nearest first",
        minimum=0,
        maximum=1_000_000,
        per_call=True,
        trains=False,
        group="common",
    )
    max_length: int = setting(
        1024, "tokens that the model reads at once in training; one step each", minimum=2, per_call=True
    )
    max_neighbor_tokens: int | None = setting(
        512, "tokens trained of one neighbor; none: all of it", minimum=2, per_call=True
    )
    max_tokens: int | None = setting(None, "tokens trained for one query; none: no limit", minimum=2, per_call=True)
    deadline_ms: float | None = setting(
        None,
        "milliseconds from the call to the end of the answer: training and writing stop in time",
        minimum=0,
        per_call=True,
        trains=False,
        group="common",
    )
    learning_rate: float = setting(
        5e-5, "learning rate of the first step", minimum=0.0, maximum=10.0, per_call=True, group="common"
    )
    schedule: Literal["constant", "inverse_sqrt", "distance"] = setting(
        "constant",
        "learning rate over the neighbors; inverse_sqrt: divided by the root of the position; distance: the farther, "
        "the smaller",
        per_call=True,
    )
    optimizer: Literal["adamw", "sgd", "torch_adamw"] = setting(
        "adamw", "adamw: the fused native step; torch_adamw: torch's own, for comparison"
    )
    beta1: float = setting(0.9, "decay of AdamW's first moment", minimum=0.0, maximum=0.99999)
    beta2: float = setting(0.999, "decay of AdamW's second moment", minimum=0.0, maximum=0.9999999)
    epsilon: float = setting(1e-8, "AdamW's epsilon", minimum=1e-20, maximum=1.0)
    weight_decay: float = setting(0.01, "decoupled weight decay", minimum=0.0, maximum=1.0)
    clip_norm: float | None = setting(
        1.0, "gradient norm above which gradients are scaled down; none: never", minimum=1e-12
    )
    optimizer_state: Literal["fresh", "carried"] = setting(
        "fresh", "carried keeps AdamW's moments from query to query, as the published code does"
    )
    precision: Precision = setting("auto", "arithmetic of training; auto: bfloat16 where the processor has it")
    attention: Literal["auto", "model"] = setting(
        "auto", "attention while training; auto: the native one where it gives what the model's own does"
    )
    keep_memory: bool = setting(
        True,
        "keep the memory that a step frees for the next one: no page faults, but the process stays as large",
        trains=False,
        group="Memory",
    )
    trainable: Literal["all", "no-embeddings", "last-layers", "patterns", "lora"] = setting(
        "all",
        "which weights are trained; no-embeddings: all but embeddings and output head; lora: low-rank matrices beside "
        "the linear layers (1e-3 is a good learning rate for them)",
        group="Trained weights",
    )
    last_layers: int = setting(
        4, "layers that trainable=last-layers trains, from the last backwards", minimum=1, group="Trained weights"
    )
    trainable_patterns: tuple[str, ...] = setting(
        (), "names of the parameters that trainable=patterns trains; * stands for any text", group="Trained weights"
    )
    lora_rank: int = setting(8, "rank of the low-rank matrices", minimum=1, maximum=65536, group="Trained weights")
    lora_alpha: float = setting(
        16.0, "low-rank updates are scaled by this over the rank", minimum=0.0, maximum=1e6, group="Trained weights"
    )
    lora_targets: tuple[str, ...] = setting(
        (),
        "linear layers given low-rank matrices, by last name or pattern; empty: all of the decoder's layers",
        group="Trained weights",
    )
    control_tokens: ControlTokens = setting(
        "text",
        "what a text is read as that spells a control token like <|endoftext|>; text: its letters; tokens: the token",
    )
    guard: Literal["none", "query"] = setting(
        "none",
        "query: score the query while training and keep the best state seen, or the base weights",
        group="common",
    )
    guard_every: int = setting(1, "neighbors between two scores of the guard", minimum=1, per_call=True)
    guard_min_tokens: int = setting(64, "a query with fewer tokens is not guarded", minimum=2, per_call=True)
    reuse: int = setting(
        0,
        "trained states kept for neighbor lists that come again, each as large as the trained weights",
        minimum=0,
        trains=False,
        group="Memory",
    )
    verify: bool = setting(
        False,
        "prove after each query that the weights are unchanged; costs one read of the weights",
        per_call=True,
        trains=False,
    )
    seed: int = setting(0, "seed of everything random in one query", minimum=0, per_call=True)

    @property
    def trains(self) -> bool:
        """Whether a query is trained on its neighbors: in the mode ``auto`` only until a deadline."""
        return self.mode == "exact" or (self.mode == "auto" and self.deadline_ms is not None)

    @property
    def in_context(self) -> int:
        """How many neighbors are read before a text."""
        if self.context_neighbors is not None:
            return self.context_neighbors
        return 4 if self.mode == "auto" else 0

    @property
    def searched(self) -> int:
        """How many neighbors a query asks for."""
        needed = [self.num_neighbors if self.trains else 0, self.in_context]
        if self.mode != "exact" and self.expert_distance is not None:
            needed.append(1)  # whose distance counts
        return max(needed)


@dataclass(frozen=True)
class ExpertConfig(Config):
    """How experts are trained before a query comes."""

    GROUP = "Experts"

    documents: int = setting(
        200, "documents that the root is trained on, drawn from the whole datastore", minimum=1, group="common"
    )
    max_length: int = setting(
        512, "tokens that the model reads of a document, in the one step that it is trained for", minimum=2
    )
    rank: int = setting(16, "rank of the low-rank matrices", minimum=1, maximum=4096)
    scale: float = setting(2.0, "what the matrices' product is scaled by", minimum=0.0, maximum=1e6)
    learning_rate: float = setting(3e-4, "learning rate of AdamW for the root", minimum=0.0, maximum=10.0)
    cluster_size: int = setting(30, "documents of a cluster, on average", minimum=1, group="common")
    leaf_documents: int = setting(
        24, "documents that the expert of a cluster is trained on, nearest to its center first", minimum=1
    )
    leaf_learning_rate: float = setting(
        1e-3, "learning rate of AdamW for the expert of a cluster", minimum=0.0, maximum=10.0
    )
    targets: tuple[str, ...] = setting(
        (), "linear layers that are changed, by last name or pattern; empty: all of the decoder's layers"
    )
    seed: int = setting(0, "seed of the fixed matrices and of the order of documents", minimum=0)


@dataclass(frozen=True)
class ScoreConfig(Config):
    """How text is scored."""

    GROUP = "Scoring"

    max_length: int | None = setting(
        None, "tokens that the model reads at once in scoring; none: its own limit", minimum=2
    )
    precision: Precision = setting("float32", "arithmetic of scoring")


@dataclass(frozen=True)
class EvalConfig(Config):
    """How a model is measured on documents."""

    GROUP = "Measurement"

    protocol: Literal["split", "split-bare", "full"] = setting(
        "split",
        "split: search with the first half, score the second with the first in its context; split-bare: without it; "
        "full: search with and score the whole document",
        group="common",
    )
    query_tokens: int = setting(1024, "longest query, in tokens", minimum=1)
    scored_tokens: int = setting(1024, "longest scored text, in tokens", minimum=1)
    curve: tuple[int, ...] = setting(
        (0, 1, 2, 5, 10, 20), "numbers of neighbors to score after", minimum=0, group="common"
    )
    limit: int | None = setting(None, "documents of each group; none: all", minimum=1, group="common")
    sample: Literal["seed", "paper"] = setting(
        "seed",
        "seed: documents in an order drawn by sample_seed; paper: the first fifth of each group after a shuffle with "
        "seed 1216, as the published code takes them",
    )
    sample_seed: int = setting(0, "seed of the order in which documents are taken", minimum=0)
    group_field: str = setting("pile_set_name", "field of meta that names a document's group")
    max_overlap: float | None = setting(
        None,
        "leave out neighbors that hold more than this share of the scored text's word 8-grams, or of whose passage it "
        "holds more; none: keep them",
        minimum=0.0,
        maximum=1.0,
        group="common",
    )
    context_tokens: int | None = setting(
        2560, "tokens of neighbors that in-context reads; none: up to the model's own limit", minimum=1
    )
    interpolation_weight: float = setting(
        0.01, "weight of the neighbors' histogram in interpolation", minimum=0.0, maximum=1.0
    )
    index_fractions: tuple[float, ...] = setting(
        (0.01, 0.1, 0.3, 1.0),
        "shares of the datastore in which index-size finds neighbors",
        minimum=1e-9,
        maximum=1.0,
    )
    index_seed: int = setting(0, "seed of the documents that each share holds", minimum=0)
    dynamic_window: int = setting(256, "tokens that dynamic evaluation scores, then trains on", minimum=2)
    dynamic_learning_rate: float = setting(1e-4, "learning rate of the method dynamic", minimum=0.0, maximum=10.0)
    lora_learning_rate: float = setting(1e-3, "learning rate of the method lora", minimum=0.0, maximum=10.0)


@dataclass(frozen=True)
class ServeConfig(Config):
    """What the server lets in, how long it waits, and how many engines it runs."""

    GROUP = "Server"

    engines: int = setting(1, "processes that answer, each with all of the model's working weights", minimum=1)
    max_queue: int = setting(64, "requests that may wait; more are refused with 429", minimum=0)
    max_queue_seconds: float = setting(
        60.0, "predicted seconds of waiting above which requests are refused with 429", minimum=0.0
    )
    max_body_bytes: int = setting(4 * 2**20, "longest body of a request", minimum=1024)
    max_score_tokens: int = setting(65536, "longest text to score, with its context", minimum=1)
    max_neighbors: int = setting(100, "most neighbors that one request may ask for", minimum=0)
    body_seconds: float = setting(
        30.0, "seconds in which a request's head must have come, and then its body", minimum=0.001
    )
    comment_seconds: float = setting(
        10.0, "seconds after which a stream that has nothing to say sends a comment", minimum=0.001, maximum=15.0
    )
    stall_seconds: float = setting(
        30.0,
        "seconds without a step after which an engine counts as stalled; after twice as many it is replaced",
        minimum=0.1,
    )
    shutdown_timeout: float = setting(30.0, "seconds in which requests may finish at the end", minimum=0.0)
    verify_every: int = setting(0, "prove the weights after this many requests; 0: never", minimum=0)
    train_when_idle: bool = setting(
        False,
        "train the experts that queries missed while no request is there, in a process of the lowest priority with a "
        "model of its own; a request stops it at once",
    )


PRESETS: dict[str, AdaptConfig] = {
    "default": AdaptConfig(),
    # Hardt & Sun, ICLR 2024, section 3 and the published code.
    "paper-gpt2": AdaptConfig(
        num_neighbors=50,
        max_length=1024,
        max_neighbor_tokens=None,
        learning_rate=2e-5,
        schedule="constant",
        precision="float32",
    ),
    "paper-gpt-neo": AdaptConfig(
        num_neighbors=50,
        max_length=2048,
        max_neighbor_tokens=None,
        learning_rate=5e-6,
        schedule="constant",
        precision="float32",
    ),
}


def preset(name: str) -> AdaptConfig:
    """Return a named AdaptConfig; an unknown name is a ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


@dataclass(frozen=True)
class ClusterConfig(Config):
    """How long a search waits for shards, and what happens when one is missing."""

    GROUP = "Cluster"

    on_missing_shard: Literal["error", "partial"] = setting(
        "error", "when a shard does not answer: an error, or the answer of the others, which says what is missing"
    )
    min_coverage: float = setting(
        0.0, "share of all documents that a partial answer must have searched, at least", minimum=0.0, maximum=1.0
    )
    shard_deadline_seconds: float = setting(
        30.0, "seconds in which shards must answer: what is near, and again the texts", minimum=0.001
    )
    shard_retry_seconds: float = setting(
        0.5, "seconds after which another replica of a shard that is late is asked too", minimum=0.001
    )
