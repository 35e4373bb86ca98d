"""Which documents each expert is trained on: the root's, drawn from all, and each cluster's, nearest to its center.

Knows a datastore's texts and vectors, and the settings. Does not know training or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..config import ExpertConfig
from ..datastore.datastore import Datastore
from ..errors import AdaptError, ConfigError
from ..lm.neighbor_tokens import portion_of
from ..lm.tokens import TextTokens
from ..retrieval.neighbors import Neighbor
from ..training.experts import Member
from .clusters import cluster_centers, nearest_centers

PROBES = 16
"""Documents whose loss is measured before and after the root is trained."""

LEAF_PROBES = 4
"""The same for the expert of a cluster, which is trained on few documents itself."""


class DocumentTokens:
    """The tokens of documents that are trained on, by id."""

    def __init__(self, datastore: Datastore, texts: TextTokens, max_length: int) -> None:
        self._datastore = datastore
        self._texts = texts
        self._max_length = max_length

    def read(self, number: int) -> tuple[Member, list[int]]:
        """Return a document as a member, and the tokens of it that are trained on."""
        document = Neighbor(number, 0.0, self._datastore.documents[number].text)
        return Member(number, document.digest), list(portion_of(self._texts, document, self._max_length).tokens)

    def windows(self, numbers: list[int]) -> list[list[int]]:
        """Return the tokens of documents, without those that have not two tokens."""
        windows = [self.read(number)[1] for number in numbers]
        return [tokens for tokens in windows if len(tokens) >= 2]


@dataclass(frozen=True)
class RootPlan:
    """What the root is trained on, in this order, and others for its loss; tokens of each."""

    members: list[Member]
    windows: list[list[int]]
    probes: list[list[int]]


def plan_root(datastore: Datastore, tokens: DocumentTokens, config: ExpertConfig) -> RootPlan:
    """Choose the root's documents, in an order that the seed and their ids alone decide.

    Raises:
        AdaptError: no document has two tokens.
    """
    members: list[Member] = []
    windows: list[list[int]] = []
    probes: list[list[int]] = []
    for member, window in _drawn(datastore, tokens, config.seed):
        if len(members) < config.documents:
            members.append(member)
            windows.append(window)
        else:
            probes.append(window)
        if len(probes) == PROBES:
            break
    if not members:
        raise AdaptError(f"{datastore.path}: must hold a document of two tokens to be learned from, and has none")
    return RootPlan(members, windows, probes or windows[-PROBES:])


def _drawn(datastore: Datastore, tokens: DocumentTokens, seed: int) -> Iterator[tuple[Member, list[int]]]:
    for number in sorted(map(int, datastore.ids), key=lambda number: _rank(seed, number)):
        member, window = tokens.read(number)
        if len(window) >= 2:
            yield member, window


def _rank(seed: int, number: int) -> bytes:
    return hashlib.blake2b(f"{seed} {number}".encode(), digest_size=16).digest()


@dataclass(frozen=True)
class LeafPlan:
    """The clusters: their centers, (clusters, dim); what each one's expert is trained on, nearest to the center first;
    ids of up to `LEAF_PROBES` documents of each cluster that it is not; and how many documents each has.
    """

    centers: NDArray[np.float32]
    members: list[list[Member]]
    probes: list[list[int]]
    sizes: list[int]


def require_documents(datastore: Datastore) -> None:
    """Refuse clusters where a document has several vectors.

    Raises:
        ConfigError: passages are embedded.
    """
    if datastore.manifest.unit != "document":
        raise ConfigError(
            f"unit must be document for experts of clusters, got {datastore.manifest.unit}: {datastore.path} has "
            "several vectors a document. Train the root alone with: tttnn precompute --only root"
        )


def plan_leaves(datastore: Datastore, config: ExpertConfig, centers: NDArray[np.float32] | None = None) -> LeafPlan:
    """Put every document into the cluster whose center is nearest to its vector, and choose those trained on.

    Args:
        datastore: whose documents, and whose index's own vectors.
        config: how large clusters are.
        centers: of clusters that are there; None: they are found.

    Raises:
        ConfigError: passages are embedded.
    """
    require_documents(datastore)
    ids = datastore.ids
    vectors = datastore.vectors(list(map(int, ids)))
    if centers is None:
        centers = cluster_centers(vectors, max(1, len(ids) // config.cluster_size), config.seed)
    cluster_of, distances = nearest_centers(vectors, centers)
    by_cluster = np.lexsort((ids, distances, cluster_of))
    bounds = np.searchsorted(cluster_of[by_cluster], np.arange(len(centers) + 1))
    plan = LeafPlan(centers, [], [], [])
    for begin, end in pairwise(bounds):
        members: list[Member] = []
        probes: list[int] = []
        for number in map(int, ids[by_cluster[begin:end]]):
            text = datastore.documents[number].text
            if not text.strip():
                continue
            if len(members) < config.leaf_documents:
                members.append(Member(number, Neighbor(number, 0.0, text).digest))
            elif len(probes) < LEAF_PROBES:
                probes.append(number)
            else:
                break
        plan.members.append(members)
        plan.probes.append(probes)
        plan.sizes.append(int(end - begin))
    return plan
