"""Log-likelihood, perplexity and bits per byte of a text under a model, over windows.

Does not know whether the model is adapted, nor where the text comes from.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..config import ScoreConfig
from ..kernels.precision import autocast
from ..kernels.thread_modes import Gradients
from .gate import probe_ids
from .limits import model_max_length
from .modes import eval_mode
from .precision import usable_precision
from .tokens import TextTokens, Tokenizer
from .windows import scoring_windows

_ROWS = 256
"""Rows of logits turned into float32 log-probabilities at once: 256 x 50,000 x 4 bytes = 51 MB."""


@dataclass(frozen=True, slots=True)
class Score:
    """The negative log-likelihood of a text.

    `nats` sums over exactly the `tokens` tokens of the text; `num_bytes` and `words` count the same text. `words` are
    separated by white space.
    """

    nats: float
    tokens: int
    num_bytes: int
    words: int

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per UTF-8 byte; NaN for an empty text."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan

    @property
    def byte_perplexity(self) -> float:
        """2 to the power of the bits per byte."""
        return float(2.0**self.bits_per_byte)

    @property
    def word_perplexity(self) -> float:
        """Exponential of the nats per word; infinite where that overflows."""
        if not self.words:
            return math.nan
        nats = self.nats / self.words
        return math.exp(nats) if nats < 709.0 else math.inf


class Scorer:
    """Scores texts under one model.

    Example:
        >>> Scorer(model, tokenizer).score("The quick brown fox").bits_per_byte  # doctest: +SKIP
        1.31
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Tokenizer | TextTokens,
        config: ScoreConfig | None = None,
        *,
        reading: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Score under a model.

        Args:
            model: A transformers causal language model.
            tokenizer: Its tokenizer.
            config: How to score.
            reading: Gives the block inside of which the model is used; it may refuse.
        """
        self._reading = reading
        self._model = model
        self._texts = TextTokens.of(tokenizer)
        self.config = config if config is not None else ScoreConfig()
        self.model_length = model_max_length(model, self._texts.tokenizer)
        """Tokens that the model reads at once."""
        self.max_length = min(self.config.max_length or self.model_length, self.model_length)
        """Tokens in a scoring window."""
        self._precision = usable_precision(model, self._mean_nats, probe_ids(self._texts), self.config.precision)
        self._slices_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def _mean_nats(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self._model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])

    def score(self, text: str, *, context: str = "", before: Sequence[int] = ()) -> Score:
        """Score a text, token by token, after an optional context that is read but not counted.

        Context and text are tokenized apart, so that the scored tokens do not depend on the context. Before both
        stands the model's `bos`, else its `eos`. A text longer than the model's limit is scored in windows: see
        `windows.scoring_windows`.

        Args:
            text: is scored.
            context: is read before it.
            before: tokens that are read before both.

        Raises:
            ValueError: the tokenizer has neither `bos` nor `eos`.
        """
        tokens = self._texts.ids(text)
        read = [*before, *(self._texts.ids(context) if context else [])]
        sequence = [self._texts.prefix(), *read, *tokens]
        nats = self.token_nats(sequence, first=1 + len(read))
        return Score(float(nats.sum()), len(tokens), len(text.encode("utf-8")), len(text.split()))

    def token_nats(self, sequence: list[int], *, first: int = 1) -> torch.Tensor:
        """Return the negative log-likelihood of each token from `first` on, in nats, (n,) float64 on the CPU."""
        return self.token_scores(sequence, first=first, likeliest=False)[0]

    def token_scores(
        self, sequence: list[int], *, first: int = 1, likeliest: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `token_nats` does, and whether each token is the likeliest one, (n,) bool on the CPU.

        The second is empty where `likeliest` is False.
        """
        device = next(self._model.parameters()).device
        ids = torch.tensor([sequence], device=device)
        nats = [torch.zeros(0, dtype=torch.float64)]
        same = [torch.zeros(0, dtype=torch.bool)]
        with self._reading(), Gradients(False), eval_mode(self._model):
            for window in scoring_windows(len(sequence), self.max_length, first=first):
                count = window.end - window.first
                extra = {"logits_to_keep": count} if self._slices_logits else {}
                with autocast(self._precision, device):
                    out = self._model(input_ids=ids[:, window.begin : window.end - 1], use_cache=False, **extra)
                logits = out.logits[0, -count:]
                targets = ids[0, window.first : window.end]
                for row in range(0, count, _ROWS):
                    log_probs = logits[row : row + _ROWS].float().log_softmax(-1)
                    wanted = targets[row : row + _ROWS]
                    nats.append(-log_probs.gather(-1, wanted[:, None])[:, 0].double().cpu())
                    if likeliest:
                        same.append((log_probs.argmax(-1) == wanted).cpu())
        return torch.cat(nats), torch.cat(same)
