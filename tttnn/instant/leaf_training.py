"""Training the experts of clusters, each from the root's state and kept as the difference, one after another.

Knows a model, documents' tokens and the root. Does not know files, order or processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..config import ExpertConfig
from .low_rank_training import ExpertTraining
from .plan import LEAF_PROBES, DocumentTokens
from .rows import numbers_of, row_of


@dataclass(frozen=True, slots=True)
class LeafJob:
    """An expert to train: its cluster, and the ids of what it is trained on and of what its loss is measured on."""

    cluster: int
    documents: tuple[int, ...]
    probes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainedLeaf:
    """An expert: its row, steps, and the mean loss of other documents of its cluster under the root and with it."""

    cluster: int
    row: bytes
    steps: int
    loss_before: float
    loss_after: float


def train_leaves(
    model: nn.Module,
    tokens: DocumentTokens,
    config: ExpertConfig,
    root: NDArray[np.float32],
    jobs: Iterable[LeafJob],
) -> Generator[TrainedLeaf]:
    """Train one expert after another; the model is what it was when the iterator ends or is closed.

    Args:
        model: in float32.
        tokens: of documents.
        config: how to train.
        root: the root's numbers, as a query uses them, (numbers,).
        jobs: each is asked for when the one before is done.
    """
    with ExpertTraining(model, config) as training:
        for job in jobs:
            yield _trained(training, tokens, config, root, job)


def _trained(
    training: ExpertTraining,
    tokens: DocumentTokens,
    config: ExpertConfig,
    root: NDArray[np.float32],
    job: LeafJob,
) -> TrainedLeaf:
    windows = tokens.windows(list(job.documents))
    probes = tokens.windows(list(job.probes)) or windows[-LEAF_PROBES:]
    training.begin(root, config.leaf_learning_rate)
    before = training.mean_loss(probes) if probes else 0.0
    training.run(windows)
    row = row_of(training.numbers() - root)
    training.put(root + numbers_of(row, len(root)))
    after = training.mean_loss(probes) if probes else 0.0
    return TrainedLeaf(job.cluster, row, len(windows), before, after)
