"""Documents that experts saw, compared with scored texts: the rule of overlap, for hundreds of documents a query.

Knows texts by their word n-grams, and which tokens of a document an expert was trained on. Runs no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import AdaptConfig
from ..lm.neighbor_tokens import portion_of
from ..lm.tokens import TextTokens
from ..retrieval.neighbors import Neighbor
from ..retrieval.retriever import DocumentsById
from ..training.experts import ExpertSource, Member
from .overlap import MAX_SHARE, ngrams_of

Hashes = NDArray[np.int64]


class SeenTexts:
    """The n-grams of documents that experts saw, each document read once."""

    def __init__(self, documents: DocumentsById, texts: TextTokens, max_tokens: int) -> None:
        """Stand ready.

        Args:
            documents: of the datastore, by id.
            texts: how the model reads texts.
            max_tokens: of a document that an expert is trained on.
        """
        self._documents = documents
        self._texts = texts
        self._max_tokens = max_tokens
        self._held: dict[str, tuple[Hashes, Hashes]] = {}

    def holding(
        self, scored: Sequence[set[tuple[str, ...]]], seen: Mapping[str, Iterable[Member]], limit: float
    ) -> set[str]:
        """Return the digests of the documents that hold too much of a scored text, or of whose passage it does.

        The rule is that of neighbors: see `EvalConfig.max_overlap`.

        Args:
            scored: n-grams of each scored text.
            seen: documents by the name of the expert that saw them.
            limit: largest share of n-grams.
        """
        wanted = [_hashed(grams) for grams in scored if grams]
        found = set()
        for member in {member.digest: member for members in seen.values() for member in members}.values():
            grams = self._grams(member)
            if grams is not None and any(_shares(one, *grams) > limit for one in wanted):
                found.add(member.digest)
        return found

    def _grams(self, member: Member) -> tuple[Hashes, Hashes] | None:
        """Return the n-grams of all of a document and of the passage trained on; None where it is gone."""
        if member.digest not in self._held:
            try:
                document = Neighbor(member.id, 0.0, self._documents[member.id].text)
            except IndexError:
                return None  # and with it every expert that saw it
            tokens = portion_of(self._texts, document, self._max_tokens).tokens
            passage = str(self._texts.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
            self._held[member.digest] = _hashed(ngrams_of(document.text)), _hashed(ngrams_of(passage))
        return self._held[member.digest]


class SeenByExperts:
    """What the experts of a trainer saw, by the text that is to be scored."""

    def __init__(self, experts: ExpertSource, documents: DocumentsById, texts: TextTokens) -> None:
        """Stand ready; see `SeenTexts`."""
        self._experts = experts
        self._texts: SeenTexts | None = None
        self._documents, self._reads = documents, texts

    def describe(self) -> dict[str, Any]:
        """Return which experts there are, and how many tokens of a document they were trained on, for the record."""
        return {"experts": self._experts.digest(), "expert_tokens": self._experts.max_length()}

    def holding(self, query: str, config: AdaptConfig, scored: Sequence[str], limit: float | None) -> set[str]:
        """Return the digests of documents that hold scored text, of those that the query's experts saw.

        Args:
            query: chooses the experts.
            config: how they are chosen.
            scored: texts.
            limit: largest share of n-grams; None: `overlap.MAX_SHARE`, because what is learned from a near copy of a
                scored text is no other than what is learned from the text.
        """
        if self._texts is None:
            self._texts = SeenTexts(self._documents, self._reads, self._experts.max_length())
        grams = [ngrams_of(text) for text in scored]
        return self._texts.holding(grams, self._experts.near(query, config), MAX_SHARE if limit is None else limit)


def _hashed(grams: set[tuple[str, ...]]) -> Hashes:
    """Return n-grams as ascending numbers of 64 bits, which take a twentieth of the memory."""
    return np.unique(np.fromiter(map(hash, grams), np.int64, len(grams)))


def _shares(scored: Hashes, whole: Hashes, passage: Hashes) -> float:
    """Return the largest of: the scored text's share in the whole and in the passage, the passage's in it."""
    in_whole = len(np.intersect1d(scored, whole, assume_unique=True))
    common = len(np.intersect1d(scored, passage, assume_unique=True))
    return max(in_whole / len(scored), common / len(scored), common / max(1, len(passage)))
