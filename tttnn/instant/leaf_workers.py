"""Several processes that train the experts of clusters, each with a model of its own.

Knows what a process loads, and a pool of them. Does not know the order of experts or where they are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import ExpertConfig
from ..datastore.datastore import Datastore
from ..errors import DatastoreMismatchError
from ..lm.loading import load_model
from ..lm.tokens import TextTokens
from ..worker_pool import WorkerPool
from .fingerprint import fingerprint_of
from .leaf_training import LeafJob, TrainedLeaf, train_leaves
from .plan import DocumentTokens


@dataclass(frozen=True, slots=True)
class LeafRecipe:
    """What a process needs to train experts: names, and torch's threads, on which sums depend."""

    model: str
    cache_dir: str | os.PathLike[str] | None
    device: str
    threads: int


def start_leaf_workers(
    count: int,
    recipe: LeafRecipe,
    datastore: str,
    fingerprint: str,
    config: ExpertConfig,
    root: NDArray[np.float32],
) -> WorkerPool:
    """Start processes that answer a `LeafJob` with a `TrainedLeaf`; the caller closes their pool."""
    pool = WorkerPool(
        "tttnn-precompute",
        label=lambda job: f"the expert of cluster {job.cluster}",
        remedy="The experts that are trained are kept: the same command continues.",
    )
    try:
        for _ in range(count):
            pool.start(_train, recipe, datastore, fingerprint, config, root)
    except BaseException:
        pool.close()
        raise
    return pool


def _train(
    jobs: Iterator[LeafJob],
    recipe: LeafRecipe,
    datastore: str,
    fingerprint: str,
    config: ExpertConfig,
    root: NDArray[np.float32],
) -> Iterator[TrainedLeaf]:
    """Load a model, and train one expert after another."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(recipe.threads)
    model, tokenizer = load_model(recipe.model, cache_dir=recipe.cache_dir)
    model = model.to(recipe.device)
    if fingerprint_of(model) != fingerprint:
        raise DatastoreMismatchError(f"{recipe.model}: must have the weights of the model loaded first")
    with Datastore.open(datastore) as opened:
        tokens = DocumentTokens(opened, TextTokens(tokenizer), config.max_length)
        yield from train_leaves(model, tokens, config, root, jobs)
