"""What all documents of an evaluation share: the trainer, the settings, and trainers that train otherwise.

Knows the trainer and the names of methods. Does not know documents, nor what a method does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from ..config import AdaptConfig, EvalConfig
from ..errors import ConfigError
from ..retrieval.retriever import require_full
from ..store.document import Document
from ..training.adapted_model import AdaptedModel
from ..training.trainer import TestTimeTrainer
from .catalogue import AUTO, CATALOGUE, GUARD, INSTANT, INSTANT_CONTEXT
from .seen_texts import SeenByExperts


class Lab:
    """What all documents share: the trainer, the settings, and the trainers of methods that train otherwise."""

    def __init__(
        self,
        trainer: TestTimeTrainer,
        config: EvalConfig,
        names: Sequence[str],
        *,
        exclude_own_text: bool = True,
        keep_text: bool = False,
        context_curve: Sequence[int] | None = None,
        observe: Callable[[Document, AdaptedModel, int], None] | None = None,
        on_scored: Callable[[], None] | None = None,
    ) -> None:
        """Take the trainer and what is asked of it.

        Args:
            trainer: adapts and scores.
            config: protocol, lengths, and the numbers of neighbors to score after.
            names: of the methods, in the order in which they are measured.
            exclude_own_text: leaves neighbors out whose text is the document's own.
            keep_text: keeps queries, excerpts of neighbors and continuations.
            context_curve: numbers of neighbors to score behind in the method in-context; None: those of `config`.
            observe: called in the pass of ttt-nn, as by `evaluate`.
            on_scored: called after each pass that scores a text.

        Raises:
            ConfigError: the trainer has a guard, which would hide the states between, or no datastore.
        """
        if trainer.config.guard != "none":
            raise ConfigError(
                f"guard must be none where states are measured one by one, got {trainer.config.guard!r}: the method "
                f"{GUARD.name} measures it"
            )
        if trainer.config.mode != "exact":
            raise ConfigError(
                f"mode must be exact where methods are measured, got {trainer.config.mode!r}: the methods "
                f"{INSTANT.name}, {INSTANT_CONTEXT.name} and {AUTO.name} measure the others"
            )
        if trainer.config.in_context and AUTO.name not in names:
            raise ConfigError(
                f"context_neighbors must be 0 where the method {AUTO.name} is not measured, got "
                f"{trainer.config.in_context}: the curve says how many neighbors other methods read"
            )
        require_full(trainer.datastore, "an evaluation")
        limit = trainer.config.num_neighbors
        searching = [name for name in names if name in CATALOGUE and CATALOGUE[name].neighbors]
        if searching and limit and trainer.datastore is None:
            raise ConfigError(f"trainer must have a datastore, in which {searching[0]} finds neighbors, got None")
        self.trainer = trainer
        self.config = config
        self.names = list(names)
        self.exclude_own_text = exclude_own_text
        self.keep_text = keep_text
        self.observe = observe
        self.on_scored = on_scored
        self.raised: Exception | None = None
        """What `observe` raised: no fault of the document."""
        self.curve = sorted({0, *(k for k in config.curve if k <= limit), limit})
        chosen = self.curve if context_curve is None else context_curve
        self.context_curve = sorted({0, *(k for k in chosen if 0 <= k <= limit), limit})
        self._variants: dict[str, TestTimeTrainer] = {}
        self._seen: SeenByExperts | None = None

    def variant(self, name: str, config: AdaptConfig) -> TestTimeTrainer:
        """Return a trainer of other settings over a copy of the model; the same one for every document."""
        if name not in self._variants:
            trainer = self.trainer
            self._variants[name] = TestTimeTrainer(
                copy.deepcopy(trainer.model), trainer.tokenizer, None, config, score=trainer.scorer.config
            )
        return self._variants[name]

    def seen(self) -> SeenByExperts:
        """Return what the experts of the trainer saw.

        Raises:
            ConfigError: it has none.
        """
        if self._seen is None:
            experts, datastore = self.trainer.experts, self.trainer.datastore
            if experts is None or datastore is None:
                raise ConfigError(
                    f"trainer must have experts for the methods {INSTANT.name}, {INSTANT_CONTEXT.name} and "
                    f"{AUTO.name}, got none. Train them with: tttnn precompute"
                )
            self._seen = SeenByExperts(experts, datastore.documents, self.trainer.texts)
        return self._seen

    def close(self) -> None:
        """Give the copies of the model up."""
        for trainer in self._variants.values():
            trainer.release()
        self._variants.clear()
