"""Embedder: texts to float32 vectors, in batches of a token budget, pooled by the native core.

On the CPU the texts of a batch stand one after the other where the encoder allows it (`packed.PackedEncoder`); else
they are padded to the longest, where that changes nothing, or stand beside texts of their length (`padded`).

Knows tokenizers and encoders; does not know where texts come from or what vectors are for.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .. import models
from ..config import EmbedConfig, Progress
from ..errors import EmbeddingError, UnknownModelError
from ..kernels.device import check_device
from ..kernels.thread_modes import Threads
from . import gate
from .batches import groups_of, token_batches
from .embed_report import EmbedReport
from .encoder import Encoder
from .encoder_files import EncoderFiles
from .identity import differences, fingerprint, identity_of
from .loading import LoadedEncoder, encoder_of, load_encoder
from .positions import affordable_length, longest_text, positions_of
from .tokens import EncoderTokens, Tokenized


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
            ConfigError: A setting asks for more than the encoder can do, as a max_length beyond its limit.
            UnknownModelError: Encoder and tokenizer do not fit, or give vectors that mean nothing; see `gate`.
            EmbeddingError: The encoder's weights are not finite.
        """
        name = name or str(getattr(model, "name_or_path", "") or type(model).__name__)

        def load() -> Any:
            return copy.deepcopy(encoder_of(model))

        self._set_up(load, tokenizer, EncoderFiles(), config or EmbedConfig(), name, device, threads)

    _ran_in: ClassVar[int | None] = None
    """The process in which an embedder computed first."""

    def _check_process(self) -> None:
        """Refuse what would wait for ever: a forked child has none of the threads that torch started before.

        Raises:
            RuntimeError: The parent process computed with several threads, and this one would, too.
        """
        if Embedder._ran_in not in (None, os.getpid()) and (self.threads or torch.get_num_threads()) > 1:
            raise RuntimeError(
                "embedder must not compute with several threads in a process that was forked from one which did: "
                "torch would wait for ever. Start processes with multiprocessing's spawn or forkserver, or call "
                "torch.set_num_threads(1) in the child."
            )
        Embedder._ran_in = os.getpid()

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
            config: `auto` follows the directory's sentence-transformers files, as `encode` of that library does;
                without them, mean pooling and no normalisation.
            device: Where the encoder runs.
            threads: Threads of the encoder; None for torch's setting.
            cache_dir: Where demo models are kept; None for the default.

        Raises:
            UnknownModelError: There is no such demo name, directory or hub id; or what is there cannot be loaded, lacks
                weights, or gives vectors that mean nothing.
            ConfigError: The directory asks for what tttnn does not compute, or a setting for more than the encoder can;
                or there is no such device.
            EmbeddingError: The encoder's weights are not finite.
        """
        check_device(str(device))
        first: list[LoadedEncoder] = [load_encoder(name, cache_dir=cache_dir)]
        tokenizer, files = first[0].tokenizer, first[0].files

        def load() -> Any:
            return (first.pop() if first else load_encoder(name, cache_dir=cache_dir)).model

        embedder = cls.__new__(cls)
        embedder._set_up(load, tokenizer, files, config or EmbedConfig(), str(name), device, threads)
        embedder._cache_dir, embedder._loaded = cache_dir, True
        return embedder

    def _set_up(
        self,
        load: Callable[[], Any],
        tokenizer: Any,
        files: EncoderFiles,
        config: EmbedConfig,
        name: str,
        device: str | torch.device | None,
        threads: int | None,
    ) -> None:
        self.config = config
        self.name = models.lasting_name(name)
        self.pooling = files.pooling if config.pooling == "auto" else config.pooling
        self.normalize = files.normalize if config.normalize == "auto" else config.normalize == "yes"
        self.threads = threads
        self._cache_dir: str | os.PathLike[str] | None = None
        self._loaded = False
        with gate.reading(self.name):
            self._tokens = _tokens_for(tokenizer, files, config)
        model = load().float().eval()
        gate.check_contents(model, self._tokens, self.name)
        ids = gate.probe_ids(self._tokens)
        positions = positions_of(model, ids, self.name)
        stated = files.max_length or getattr(tokenizer, "model_max_length", None)
        self.max_length = longest_text(model, ids, stated, config.max_length, positions, self.name)
        self._tokens.limit(self.max_length)
        gate.check_states(model, self._tokens, self.name)
        weights = fingerprint(model)
        self._encoder = Encoder(
            model,
            load,
            device=torch.device(device) if device is not None else None,
            precision=config.precision,
            first_position=positions.first,
            tokens=ids,
            padding=int(getattr(tokenizer, "pad_token_id", None) or 0),
            longest=min(self.max_length, affordable_length(model)),
        )
        self.model = self._encoder.model
        self.device = next(self.model.parameters()).device
        self.precision = self._encoder.precision
        width = config.truncate_dim or files.truncate_dim or self._encoder.dim
        self.dim = min(width, self._encoder.dim)
        self._skip = 0 if files.include_prompt else self._tokens.prompt_states
        self.identity: dict[str, Any] = identity_of(self._deciding(model, weights))
        """Everything that decides a vector. Not the precision: bfloat16 and float32 vectors of the same text have a
        cosine above 0.999 and may be searched with each other; the datastore records it beside the identity."""

    def _deciding(self, model: Any, weights: str) -> dict[str, Any]:
        """Return what decides a vector, by name; `weights` is their fingerprint."""
        return {
            "architecture": str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)),
            "weights": weights,
            "tokenizer": self._tokens.fingerprint(),
            "dim": self.dim,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            "prompt": self._tokens.prompt,
            "include_prompt": self._skip == 0,
            "lower_case": self._tokens.lower_case,
            "truncation": self._tokens.truncation,
        }

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
            texts: n texts. Only the `max_length` tokens of each that are kept are read.
            progress: Called after each batch with the stage "embed", texts done and n.
            name_of: Names a text by its position, for messages.
            report: Counts are added to it.

        Returns:
            (n, dim) float32, in the order of `texts`.

        Raises:
            EmbeddingError: A vector is not finite; the message names the document, or the encoder where its weights
                are not finite.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a sequence of texts, got one str")
        self._check_process()
        report = report if report is not None else EmbedReport()
        out = np.empty((len(texts), self.dim), np.float32)
        done = 0
        with Threads(self.threads), closing(self._tokenized(texts, report)) as groups:
            for begin, ids in groups:
                padded, together = self._encoder.packed is None, self._encoder.together
                lengths = [len(row) for row in ids]
                for batch in token_batches(lengths, self.config.batch_tokens, padded=padded, together=together):
                    vectors, bad = self._encoder.vectors(
                        [ids[j] for j in batch], self.pooling, self.normalize, self._skip, report
                    )
                    if bad >= 0:
                        raise self._not_finite(name_of(begin + batch[bad]))
                    out[np.array(batch) + begin] = vectors[:, : self.dim]
                    done += len(batch)
                    if progress is not None:
                        progress("embed", done, len(texts))
        return out

    def _tokenized(self, texts: Sequence[str], report: EmbedReport) -> Generator[tuple[int, list[list[int]]]]:
        """Yield where each group of texts begins, and their token ids; the next group is tokenised meanwhile."""
        groups = groups_of(len(texts))
        with ThreadPoolExecutor(1, "tttnn-tokenize") as worker:
            ahead: list[Future[Tokenized]] = []
            for i, (begin, _) in enumerate(groups):
                while len(ahead) < 2 and i + len(ahead) < len(groups):
                    start, end = groups[i + len(ahead)]
                    ahead.append(worker.submit(self._tokens.encode, texts[start:end]))
                waiting = time.perf_counter()
                ready = ahead.pop(0).result()
                report.add_seconds("wait", time.perf_counter() - waiting)
                report.texts += len(ready.ids)
                report.truncated += ready.truncated
                report.empty += ready.empty
                yield begin, ready.ids

    def _not_finite(self, document: str) -> EmbeddingError:
        """Return the error for a vector that is not finite: the encoder's fault, or the document's."""
        try:
            gate.check_finite(self.model, self.name)
        except EmbeddingError as error:
            return error
        return EmbeddingError(
            f"{document}: its embedding must be finite, got NaN or infinity in {self.precision} from encoder "
            f"{self.name!r}. Use precision float32 or another encoder."
        )

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return where each token of a text begins and ends, in characters: (n, 2). Without special tokens."""
        return self._tokens.spans(text)

    @property
    def passage_length(self) -> int:
        """Tokens of text that fit beside the prompt and the special tokens."""
        return self.max_length - self._tokens.special - self._tokens.prompt_length

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name and the settings: the other process loads the encoder anew."""
        if not self._loaded:
            raise TypeError(
                f"embedder must be made by Embedder.load to be pickled, got {self!r}, made of a model in memory"
            )
        return _load_again, (self.name, self.config, str(self.device), self.threads, self._cache_dir, self.identity)

    def __repr__(self) -> str:
        return f"Embedder({self.name!r}, dim={self.dim}, pooling={self.pooling!r}, normalize={self.normalize})"


def _tokens_for(tokenizer: Any, files: EncoderFiles, config: EmbedConfig) -> EncoderTokens:
    side: Literal["right", "left"] = "left" if getattr(tokenizer, "truncation_side", "right") == "left" else "right"
    return EncoderTokens(
        tokenizer,
        prompt=files.prompt if config.prompt == "auto" else config.prompt,
        lower_case=files.lower_case if config.lower_case == "auto" else config.lower_case == "yes",
        truncation=side if config.truncation == "auto" else config.truncation,
    )


def _load_again(
    name: str,
    config: EmbedConfig,
    device: str,
    threads: int | None,
    cache_dir: str | os.PathLike[str] | None,
    identity: dict[str, Any],
) -> Embedder:
    """Load a pickled embedder; the files may have changed since."""
    embedder = Embedder.load(name, config, device=device, threads=threads, cache_dir=cache_dir)
    differing = differences(identity, embedder.identity)
    if differing:
        raise UnknownModelError(f"model {name!r} must be the one that was pickled, but {', '.join(differing)}")
    return embedder
