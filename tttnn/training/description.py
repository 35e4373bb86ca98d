"""What a trainer is made of, as plain values: for reports, the heads of result files, and other programs.

Knows an engine and what a retriever says of itself. Does not know queries.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import models
from ..retrieval.retriever import Retriever, described
from ..version import __version__
from .engine import Engine


@dataclass(frozen=True, slots=True)
class TrainerInfo:
    """All that answers depend on beside the query.

    Attributes:
        name: the model as it was loaded: demo name, hub id or directory; empty where it was made in memory.
        model: digest of its weights.
        parameters: its weights, tied ones once, low-rank matrices left out.
        trained: weights that are trained.
        dtype: type of the weights.
        device: where they are.
        window: tokens that the model reads at once.
        precision: arithmetic of training: ``float32`` (the weights' own) or ``bfloat16``.
        native_attention: whether training attends by the core.
        settings: of training, as plain values.
        score: settings of scoring.
        datastore: id of the documents; None where there are none.
        embedder: what makes the vectors of queries.
        selection: settings of the selection among the nearest; None where the nearest are taken.
        threads: torch's, on the CPU.
        versions: of tttnn, torch, transformers and python.
    """

    name: str
    model: str
    parameters: int
    trained: int
    dtype: str
    device: str
    window: int
    precision: str
    native_attention: bool
    settings: dict[str, Any]
    score: dict[str, Any]
    datastore: str | None
    embedder: str | None
    selection: dict[str, Any] | None
    threads: int
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def description_of(engine: Engine, retriever: Retriever | None) -> TrainerInfo:
    """Return what an engine is made of, and what its retriever says of itself."""
    import transformers

    retrieval = described(retriever)
    weights = engine.weights
    return TrainerInfo(
        name=models.name_of(getattr(engine.model.config, "_name_or_path", "")),
        model=engine.fingerprint,
        parameters=weights.parameters,
        trained=weights.trained,
        dtype=weights.dtype,
        device=str(engine.device),
        window=engine.max_window,
        precision=engine.precision,
        native_attention=engine.attention is not None,
        settings=engine.config.to_dict(),
        score=engine.scorer.config.to_dict(),
        datastore=retrieval.id,
        embedder=retrieval.embedder,
        selection=None if retrieval.selection is None else retrieval.selection.to_dict(),
        threads=torch.get_num_threads(),
        versions={
            "tttnn": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )
