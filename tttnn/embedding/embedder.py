"""Embedder: texts to float32 vectors, in batches of a token budget, pooled by the native core.

On the CPU the texts of a batch stand one after the other where the encoder allows it (`packed.PackedEncoder`); else
they are padded to the longest.

Knows tokenizers and encoders; does not know where texts come from or what vectors are for.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import models
from ..config import EmbedConfig, Progress
from ..errors import EmbeddingError, UnknownModelError
from ..kernels.linear import fuse_biases
from ..kernels.pooling import pool, pool_packed
from ..kernels.precision import resolved
from .encoder_files import EncoderFiles, encoder_directory, first_position, longest_text, read_encoder_files
from .packed import PackedEncoder, packed_offsets
from .tokens import EncoderTokens

GROUP = 1024  # texts that are ordered by length together; the next group is tokenised meanwhile
_FIRST_GROUP = 64  # small, so that the model starts soon


@dataclass
class EmbedReport:
    """What embedding has read so far; filled by `Embedder.embed`."""

    texts: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    """Tokens given to the encoder, padding included."""
    truncated: int = 0
    """Texts longer than the encoder reads."""
    empty: int = 0
    """Texts embedded as a single space, because they were empty."""
    seconds: dict[str, float] = field(default_factory=dict)
    """encode: in the encoder; pool: pooling; wait: for the tokenizer."""

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to one stage's seconds."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class Embedder:
    """An encoder with its tokenizer and pooling.

    >>> embedder = Embedder.load("minilm-l6")                  # doctest: +SKIP
    >>> embedder.embed(["a text", "another"]).shape            # doctest: +SKIP
    (2, 384)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: EmbedConfig | None = None,
        *,
        name: str | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        """Make an embedder of a loaded encoder. It keeps a copy of the encoder, so the caller's stays as it is.

        Args:
            model: A transformers encoder; of an encoder-decoder the encoder is taken.
            tokenizer: Its tokenizer.
            config: `auto` pools by mean and does not normalise.
            name: What `load` takes to make this embedder again; None: the model's own name.
            device: None for the model's.
            threads: Threads of the encoder; None for torch's setting.

        Raises:
            ConfigError: max_length is more than the encoder can read.
        """
        self._set_up(copy.deepcopy(model), tokenizer, config or EmbedConfig(), name, device, threads, EncoderFiles())

    @classmethod
    def load(
        cls,
        name: str | Path,
        config: EmbedConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Embedder:
        """Load an encoder with its tokenizer.

        Args:
            name: A demo name ("minilm-l6"), a directory of transformers or sentence-transformers, or a hub id.
            config: `auto` follows the directory's sentence-transformers files; without them, mean pooling and no
                normalisation.
            device: Where the encoder runs.
            threads: Threads of the encoder; None for torch's setting.
            cache_dir: Where demo models are kept; None for the default.

        Raises:
            UnknownModelError: There is no such demo name, directory or hub id.
            ConfigError: The directory pools in a way tttnn does not know, or max_length is too large.
        """
        from transformers import AutoModel, AutoTokenizer

        with models.loading(name):
            directory = encoder_directory(models.resolve(name, cache_dir=cache_dir))
            files = read_encoder_files(directory)
            if not Path(files.folder, "config.json").is_file():
                raise UnknownModelError(f"model must be a directory with config.json, got {files.folder!r}")
            tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
            model = AutoModel.from_pretrained(files.folder, dtype=torch.float32, trust_remote_code=False)
        embedder = cls.__new__(cls)
        embedder._set_up(model, tokenizer, config or EmbedConfig(), str(name), device, threads, files)
        return embedder

    def _set_up(
        self,
        model: Any,
        tokenizer: Any,
        config: EmbedConfig,
        name: str | None,
        device: str | torch.device | None,
        threads: int | None,
        files: EncoderFiles,
    ) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        self.config = config
        self.name = name or str(getattr(model, "name_or_path", "") or type(model).__name__)
        self.pooling = files.pooling if config.pooling == "auto" else config.pooling
        self.normalize = files.normalize if config.normalize == "auto" else config.normalize == "yes"
        self.max_length = longest_text(model, tokenizer, config, files)
        self.threads = threads
        weights = _fingerprint(model)
        device = torch.device(device) if device is not None else next(model.parameters()).device
        self.precision = resolved(config.precision, device)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device = device
        self._tokens = EncoderTokens(tokenizer, self.max_length)
        self._padding = int(getattr(tokenizer, "pad_token_id", None) or 0)
        fuse_biases(self.model)
        self._packed = PackedEncoder.for_model(self.model, first_position=first_position(model))
        self.dim = int(self._encode([self._tokens.encode([" "]).ids[0] or [self._padding]])[0].shape[-1])
        self.identity: dict[str, Any] = {
            "architecture": str(getattr(model.config, "model_type", type(model).__name__)),
            "weights": weights,
            "tokenizer": self._tokens.fingerprint(),
            "dim": self.dim,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
        }
        """Everything that decides a vector. Not the precision: bfloat16 and float32 vectors of the same text have a
        cosine above 0.999 and may be searched with each other; the datastore records it beside the identity."""

    def embed(
        self,
        texts: Sequence[str],
        *,
        progress: Progress | None = None,
        name_of: Callable[[int], str] = "document {}".format,
        report: EmbedReport | None = None,
    ) -> NDArray[np.float32]:
        """Embed texts; an empty one as a single space.

        A vector does not depend on the other texts, but for rounding: torch may round a product of another shape
        otherwise. Attention by the core and pooling give a text the bits that it has alone.

        Args:
            texts: n texts. Only the first `max_length` tokens of each are read.
            progress: Called with the stage "embed", texts done and n.
            name_of: Names a text by its position, for messages.
            report: Counts are added to it.

        Returns:
            (n, dim) float32, in the order of `texts`.

        Raises:
            EmbeddingError: A vector is not finite; the message names the document.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a sequence of texts, got one str")
        report = report if report is not None else EmbedReport()
        out = np.empty((len(texts), self.dim), np.float32)
        starts = [0, *range(_FIRST_GROUP, len(texts), GROUP)] if texts else []
        groups = [texts[begin:end] for begin, end in zip(starts, [*starts[1:], len(texts)], strict=False)]
        with self._thread_count(), ThreadPoolExecutor(1, "tttnn-tokenize") as worker:
            ahead = worker.submit(self._tokens.encode, groups[0]) if groups else None
            for i, start in enumerate(starts):
                assert ahead is not None
                waiting = time.perf_counter()
                tokenized = ahead.result()
                report.add_seconds("wait", time.perf_counter() - waiting)
                if i + 1 < len(groups):
                    ahead = worker.submit(self._tokens.encode, groups[i + 1])
                report.texts += len(tokenized.ids)
                report.truncated += tokenized.truncated
                report.empty += tokenized.empty
                lengths = [len(ids) for ids in tokenized.ids]
                for batch in token_batches(lengths, self.config.batch_tokens, padded=self._packed is None):
                    rows = np.array(batch, np.int64)
                    self._embed_batch([tokenized.ids[j] for j in batch], rows + start, out, name_of, report)
                if progress is not None:
                    progress("embed", start + len(groups[i]), len(texts))
        return out

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return where each token of a text begins and ends, in characters: (n, 2). Without special tokens."""
        return self._tokens.spans(text)

    @property
    def passage_length(self) -> int:
        """Tokens of text that fit beside the special tokens."""
        return self.max_length - self._tokens.special

    def _embed_batch(
        self,
        ids: list[list[int]],
        rows: NDArray[np.int64],
        out: NDArray[np.float32],
        name_of: Callable[[int], str],
        report: EmbedReport,
    ) -> None:
        lengths = [len(row) for row in ids]
        report.tokens += sum(lengths)
        report.padded_tokens += sum(lengths) if self._packed is not None else len(ids) * max(lengths)
        started = time.perf_counter()
        if self._packed is not None:
            states = self._packed(ids)
            encoded = time.perf_counter()
            bad = pool_packed(states, packed_offsets(lengths), rows, out, self.pooling, self.normalize)
        else:
            hidden, mask = self._encode(ids)
            encoded = time.perf_counter()
            bad = pool(hidden, mask, rows, out, self.pooling, self.normalize)
        report.add_seconds("encode", encoded - started)
        report.add_seconds("pool", time.perf_counter() - encoded)
        if bad >= 0:
            raise EmbeddingError(
                f"{name_of(int(rows[bad]))}: its embedding must be finite, got NaN or infinity in "
                f"{self.precision}. Use precision float32 or another encoder."
            )

    def _encode(self, ids: list[list[int]]) -> tuple[torch.Tensor, NDArray[np.uint8] | None]:
        """Return hidden states (batch, tokens, dim) and the mask of real tokens, None where all are."""
        longest = max(map(len, ids))
        lengths = np.array([len(row) for row in ids])
        tokens = np.full((len(ids), longest), self._padding, np.int64)
        for row, values in zip(tokens, ids, strict=True):
            row[: len(values)] = values
        real = np.arange(longest) < lengths[:, None]
        with torch.inference_mode():
            hidden = self.model(
                input_ids=torch.from_numpy(tokens).to(self.device),
                attention_mask=torch.from_numpy(real.astype(np.int64)).to(self.device),
            ).last_hidden_state
        return hidden, None if real.all() else real.view(np.uint8)

    @contextmanager
    def _thread_count(self) -> Iterator[None]:
        if self.threads is None:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def __repr__(self) -> str:
        return f"Embedder({self.name!r}, dim={self.dim}, pooling={self.pooling!r}, normalize={self.normalize})"


def token_batches(lengths: Sequence[int], budget: int, *, padded: bool = True) -> list[list[int]]:
    """Group texts so that each group has at most `budget` tokens, padded to its longest or not; longest first.

    Texts of equal length stay together, and a text longer than the budget is a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    size = 0  # of the last group, or of its longest text where all are padded to it
    for i in order:
        length = max(1, lengths[i])
        after = (len(batches[-1]) + 1) * size if batches and padded else size + length
        if batches and after <= budget:
            batches[-1].append(i)
            size = size if padded else after
        else:
            batches.append([i])
            size = length
    return batches


def _fingerprint(model: Any) -> str:
    """Return a digest of the weights, rounded to bfloat16: the same for a float32 and a bfloat16 copy."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        rounded = parameter.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(rounded.view(torch.uint8).numpy() if rounded.numel() else b"")
    return digest.hexdigest()
