"""What an engine process holds: a trainer on shared pristine weights, and what others need to know of it.

Knows how it is loaded. Does not know the pipe or what is asked of it.
"""

from __future__ import annotations

import time
from typing import Any

from ..instant.manifest import MANIFEST, folder_of
from ..lm.generate import continued
from ..recipe import TrainerRecipe, last_part
from ..retrieval.neighbors import Neighbor
from ..training.report import AdaptReport
from ..training.trainer import TestTimeTrainer
from ..weights.shared_weights import SharedWeights
from .cost import Costs
from .heard_retriever import HeardRetriever


class Session:
    """One trainer, and everything an engine's tasks use."""

    def __init__(self, recipe: TrainerRecipe, weights: SharedWeights | None) -> None:
        """Load a model and open a datastore.

        Args:
            recipe: which.
            weights: the pristine weights of an engine before; None: this one makes them, see `weights`.
        """
        trainer = recipe.load(weights)
        if weights is None:
            # Taken over again on the shared copy, so that the pristine weights lie in memory once.
            weights = trainer.share_weights()
            model, tokenizer, datastore = trainer.model, trainer.tokenizer, trainer.datastore
            experts = trainer.experts
            trainer.release()
            trainer = TestTimeTrainer(
                model, tokenizer, datastore, recipe.adapt, score=recipe.score, shared_weights=weights
            )
            trainer.experts = experts
        assert trainer.datastore is not None
        self.datastore: Any = trainer.datastore.datastore  # type: ignore[attr-defined]
        """What neighbors come from, with its embedder."""
        self.retriever = HeardRetriever(trainer.datastore)
        trainer.datastore = self.retriever
        self.trainer = trainer
        self.weights = weights
        self.tokenizer = trainer.tokenizer
        self.window: int = trainer.engine.max_window
        self.costs = Costs()
        """What work costs in this process, for what a deadline leaves to training."""

    def warm_up(self) -> dict[str, tuple[float, float]]:
        """Do each kind of work once, so that nobody waits for a process's slow first step; return what it cost."""
        trainer, spent = self.trainer, {}
        text = "The first step of a process is the slowest, and no client should have to wait for it. " * 8
        started = time.perf_counter()
        self.retriever.search(text, 1)
        spent["retrieve"] = (time.perf_counter() - started, 1.0)
        tokens = trainer.texts.ids(text)[: self.window // 2]
        plain = trainer.config.with_(mode="exact", context_neighbors=0)
        # Twice: the first one is slow, the second one is what later ones take. Watched, so that no state is kept.
        for _ in range(2):
            own = [Neighbor(0, 0.0, text)]
            with trainer.adapt(text, config=plain, neighbors=own, observe=lambda *_: None) as adapted:
                started = time.perf_counter()
                generation = continued(trainer.model, self.tokenizer, tokens, window=self.window, max_new_tokens=4)
                taken = time.perf_counter() - started
            report = adapted.report
            spent["restore"] = (report.seconds["restore"], 1.0)
            if report.steps:
                spent["train"] = (sum(report.step_seconds), float(report.tokens))
                spent["neighbor_tokens"] = (float(report.tokens), 1.0)
            spent["read"] = spent["write"] = (taken, float(len(tokens) + len(generation.tokens)))
        self.costs.saw(spent)
        return spent

    def query_loss(self, query: str, tokens: int) -> float:
        """Return the mean nats per token of a query's last tokens, under the weights as they are."""
        sequence = [self.trainer.texts.prefix(), *self.trainer.texts.last_ids(query, tokens)[-tokens:]]
        return float(self.trainer.scorer.token_nats(sequence).mean())

    @property
    def embedder_name(self) -> str:
        """What clients call the embedder: its directory's last part, where that is what it was loaded from."""
        return last_part(self.datastore.embedder_name)

    def report(self, report: AdaptReport) -> dict[str, Any]:
        """Return a report as clients see it: no path of this machine."""
        return report.to_dict() | {"embedder": None if report.embedder is None else last_part(report.embedder)}

    def facts(self, name: str) -> dict[str, Any]:
        """Return what those who ask need to know, as plain values; `name` is what they call the model."""
        import platform

        import torch
        import transformers

        from ..version import __version__

        trainer, tokenizer = self.trainer, self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        datastore = self.datastore
        return {
            "started": int(time.time()),
            "model": {
                "name": name,
                "digest": trainer.fingerprint,
                "chat_template": bool(getattr(tokenizer, "chat_template", None)),
            },
            "embedder": {"name": self.embedder_name, "dim": datastore.embedder.dim},
            "datastore": {"id": datastore.describe().id, "documents": len(datastore)},
            # Not there before `tttnn precompute` has run, which may be while this engine lives.
            "experts": str(folder_of(datastore.path, trainer.fingerprint) / MANIFEST),
            "settings": trainer.config.to_dict(),
            "limits": {
                "window": self.window,
                "vocabulary": trainer.model.get_input_embeddings().num_embeddings,
            },
            "tokenizer": None if backend is None else backend.to_str(),
            "threads": torch.get_num_threads(),
            "versions": {
                "tttnn": __version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }
