"""Which documents are measured, and in which order.

Knows documents, their groups and seeds. Does not know what is measured of them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

from ..config import EvalConfig
from ..store.document import Document

_PAPER_SEED = 1216


_PAPER_SHARE = 0.2


def sampled(documents: Iterable[Document | str], config: EvalConfig) -> list[tuple[int, Document]]:
    """Return the documents to measure with their positions, in the order in which they are measured.

    Each group's documents are shuffled; then the groups take turns, so that what an interrupted run leaves covers all
    groups, and a larger `limit` only adds documents. With ``sample="seed"`` the shuffle of a group depends on
    `sample_seed` and the group's name. With ``sample="paper"`` it is that of the published code: Python's
    ``random.Random(1216).shuffle`` of the group's documents in the order of the file, of which the first
    ``int(0.2 * n)`` are taken. (The published numbers are from the Pile's test set, with a group for each of 22
    components.)
    """
    numbered = [document if isinstance(document, Document) else Document(document) for document in documents]
    groups: dict[str, list[int]] = defaultdict(list)
    for i, document in enumerate(numbered):
        groups[group_of(document, config.group_field)].append(i)
    for name, positions in groups.items():
        if config.sample == "paper":
            random.Random(_PAPER_SEED).shuffle(positions)
            del positions[int(_PAPER_SHARE * len(positions)) :]
        else:
            random.Random(f"{config.sample_seed} {name}").shuffle(positions)
        if config.limit is not None:
            del positions[config.limit :]
    rounds = max((len(positions) for positions in groups.values()), default=0)
    return [
        (groups[name][turn], numbered[groups[name][turn]])
        for turn in range(rounds)
        for name in sorted(groups)
        if turn < len(groups[name])
    ]


def group_of(document: Document, name: str) -> str:
    """Return the value of a field of `meta` (``meta.`` may stand before its name); "documents" where there is none."""
    value = document.meta.get(name.removeprefix("meta."))
    return str(value) if isinstance(value, str | int) and value != "" else "documents"
