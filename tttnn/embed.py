"""Embedder: texts to float32 vectors, in batches of a token budget, pooled by the native core.

On the CPU the texts of a batch stand one after the other where the encoder allows it (`packed.PackedEncoder`); else
they are padded to the longest.

Knows tokenizers and encoders; does not know where texts come from or what vectors are for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import _core, models
from .config import EmbedConfig, Progress
from .errors import ConfigError, EmbeddingError, UnknownModelError
from .linear import fuse_biases
from .packed import PackedEncoder, packed_offsets
from .precision import resolved

GROUP = 1024  # texts that are ordered by length together; the next group is tokenised meanwhile
_FIRST_GROUP = 64  # small, so that the model starts soon

_CHARACTERS_PER_TOKEN = 6  # of the prefix that is tokenised first; most text has 3 to 5
_PROBE = "The quick brown fox, Zürich 42!\n\tnaïve  日本語 🐍 def f(x): return x"


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


class _Tokenized(NamedTuple):
    ids: list[list[int]]
    truncated: int
    empty: int


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
        self._set_up(copy.deepcopy(model), tokenizer, config or EmbedConfig(), name, device, threads, _Files())

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
            directory = _directory(models.resolve(name, cache_dir=cache_dir))
            files = _read_files(directory)
            if not Path(files.folder, "config.json").is_file():
                raise UnknownModelError(f"model must be a directory with config.json, got {files.folder!r}")
            tokenizer = AutoTokenizer.from_pretrained(files.folder)
            model = AutoModel.from_pretrained(files.folder, dtype=torch.float32)
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
        files: _Files,
    ) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        self.config = config
        self.name = name or str(getattr(model, "name_or_path", "") or type(model).__name__)
        self.pooling = files.pooling if config.pooling == "auto" else config.pooling
        self.normalize = files.normalize if config.normalize == "auto" else config.normalize == "yes"
        self.max_length = _max_length(model, tokenizer, config, files)
        self.threads = threads
        weights = _fingerprint(model)
        device = torch.device(device) if device is not None else next(model.parameters()).device
        self.precision = resolved(config.precision, device)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device = device
        self._tokens = _Tokens(tokenizer, self.max_length)
        self._padding = int(getattr(tokenizer, "pad_token_id", None) or 0)
        fuse_biases(self.model)
        self._packed = PackedEncoder.for_model(self.model, first_position=_first_position(model))
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
            bad = _pool_packed(states, packed_offsets(lengths), rows, out, self.pooling, self.normalize)
        else:
            hidden, mask = self._encode(ids)
            encoded = time.perf_counter()
            bad = _pool(hidden, mask, rows, out, self.pooling, self.normalize)
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


def _pool_packed(
    states: torch.Tensor,
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
    pooling: str,
    normalize: bool,
) -> int:
    array = _as_array(states)
    return _core.pool_packed(array, offsets, rows, out, pooling=pooling, normalize=normalize)


def _as_array(states: torch.Tensor) -> NDArray[Any]:
    """Return states on the CPU as the core takes them."""
    if states.dtype not in (torch.float32, torch.bfloat16):
        states = states.float()
    states = states.contiguous().cpu()
    return states.view(torch.uint16).numpy() if states.dtype == torch.bfloat16 else states.numpy()


def _pool(
    hidden: torch.Tensor,
    mask: NDArray[np.uint8] | None,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
    pooling: str,
    normalize: bool,
) -> int:
    if hidden.device.type == "cuda" and _core.build_info()["cuda"]:
        if hidden.dtype not in (torch.float32, torch.bfloat16):
            hidden = hidden.float()
        return _pool_cuda(hidden.contiguous(), mask, rows, out, pooling, normalize)
    return _core.pool(_as_array(hidden), mask, rows, out, pooling=pooling, normalize=normalize)


def _pool_cuda(
    hidden: torch.Tensor,
    mask: NDArray[np.uint8] | None,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
    pooling: str,
    normalize: bool,
) -> int:
    batch, tokens, dim = hidden.shape
    where = hidden.device
    on_device = torch.empty((batch, dim), dtype=torch.float32, device=where)
    places = torch.arange(batch, device=where)
    bad = torch.zeros(1, dtype=torch.int32, device=where)
    real = None if mask is None else torch.from_numpy(mask).to(where)
    _core.pool_cuda(
        hidden.data_ptr(),
        bfloat16=hidden.dtype == torch.bfloat16,
        batch=batch,
        tokens=tokens,
        dim=dim,
        mask=0 if real is None else real.data_ptr(),
        rows=places.data_ptr(),
        out=on_device.data_ptr(),
        bad=bad.data_ptr(),
        pooling=pooling,
        normalize=normalize,
        stream=torch.cuda.current_stream(where).cuda_stream,
    )
    vectors = on_device.cpu().numpy()
    out[rows] = vectors
    return int(np.argmin(np.isfinite(vectors).all(axis=1))) if int(bad.item()) else -1


class _Tokens:
    """Texts to token ids with special tokens, at most `max_length` of them. Leaves the caller's tokenizer alone."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._slow = tokenizer
        self._fast = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            self._fast = type(backend).from_str(backend.to_str())
            self._fast.no_truncation()
            self._fast.no_padding()
        with_special = self._raw("a", special=True)
        plain = self._raw("a", special=False)
        # One sequence between fixed special tokens is all that encoders use.
        at = next(
            (i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain),
            0,
        )
        self._before = with_special[:at]
        self._after = with_special[at + len(plain) :]
        self.special = len(self._before) + len(self._after)
        if max_length <= self.special:
            raise ConfigError(f"max_length must be more than {self.special} (the special tokens), got {max_length}")
        self._room = max_length - self.special

    def _raw(self, text: str, *, special: bool) -> list[int]:
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=special).ids)
        return list(self._slow(text, add_special_tokens=special)["input_ids"])

    def fingerprint(self) -> str:
        """Return a digest of what decides token ids: vocabulary, special tokens and how a probe is split."""
        vocabulary = self._fast.get_vocab(with_added_tokens=True) if self._fast is not None else self._slow.get_vocab()
        content = [sorted(vocabulary.items()), self._before, self._after, self._raw(_PROBE, special=False)]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str]) -> _Tokenized:
        """Return token ids of each text, how many were truncated, and how many were empty."""
        texts = [_valid(text) for text in texts]
        empty = sum(not text for text in texts)
        texts = [text or " " for text in texts]
        ids: list[list[int]] = [[] for _ in texts]
        truncated = 0
        pending = list(range(len(texts)))
        reach = self._room * _CHARACTERS_PER_TOKEN
        while pending:
            # The end of a long text cannot change its first tokens, so it is not tokenised.
            again = []
            parts = [texts[i][:reach] for i in pending]
            for i, part, (found, settled) in zip(pending, parts, self._split(parts), strict=True):
                whole = len(part) == len(texts[i])
                if not whole and not settled:
                    again.append(i)
                    continue
                truncated += not whole or len(found) > self._room
                ids[i] = self._before + found[: self._room] + self._after
            pending = again
            reach *= 4
        return _Tokenized(ids, truncated, empty)

    def _split(self, parts: list[str]) -> Iterator[tuple[list[int], bool]]:
        """Yield each part's ids and whether its first `room` tokens stay the same whatever follows the part.

        They do when they lie in words before the last but one: a pre-tokenizer looks at most one word ahead.
        """
        if self._fast is None:
            for part in parts:
                yield self._raw(part, special=False), False
            return
        for encoding in self._fast.encode_batch(parts, add_special_tokens=False):
            found = encoding.ids
            settled = False
            if len(found) > self._room:
                kept = encoding.token_to_word(self._room - 1)
                end = encoding.token_to_word(len(found) - 1)
                settled = kept is not None and end is not None and kept < end - 1
            yield found, settled

    def spans(self, text: str) -> NDArray[np.int64]:
        """Return begin and end of each token, in characters."""
        if self._fast is None:
            raise ConfigError("unit must be document for an encoder without a fast tokenizer, got passage")
        found = [np.zeros((0, 2), np.int64)]
        text = _valid(text)
        begin = 0
        while begin < len(text):
            end = min(len(text), begin + 65536)  # a bounded piece, ended at a space where there is one
            if end < len(text):
                space = text.rfind(" ", begin + 1, end)
                end = space if space > 0 else end
            offsets = self._fast.encode(text[begin:end], add_special_tokens=False).offsets
            found.append(np.array(offsets, np.int64).reshape(-1, 2) + begin)
            begin = end
        return np.concatenate(found)


def _valid(text: str) -> str:
    """Return the text with lone surrogates, which tokenizers refuse, as question marks."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


class _Files(NamedTuple):
    """What a model directory says about embedding."""

    folder: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None


def _directory(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*/config.json"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*patterns, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "*.bin"]))
    except Exception as problem:
        raise UnknownModelError(
            f"model must be a demo name ({', '.join(models.DEMO_MODELS)}), a directory or a hub id in reach, "
            f"got {name!r}: {str(problem).splitlines()[0]}"
        ) from problem
    return folder


def _read_files(directory: Path) -> _Files:
    """Read a sentence-transformers directory's modules; a plain transformers directory has none."""
    listing = directory / "modules.json"
    if not listing.is_file():
        return _Files(str(directory))
    files = _Files(str(directory))
    for module in json.loads(listing.read_text()):
        kind, folder = str(module["type"]).rsplit(".", 1)[-1], directory / module["path"]
        if kind == "Transformer":
            limit = folder / "sentence_bert_config.json"
            found = json.loads(limit.read_text()).get("max_seq_length") if limit.is_file() else None
            files = files._replace(folder=str(folder), max_length=found)
        elif kind == "Pooling":
            files = files._replace(pooling=_pooling_of(folder / "config.json"))
        elif kind == "Normalize":
            files = files._replace(normalize=True)
        else:
            raise ConfigError(f"{listing}: module must be Transformer, Pooling or Normalize, got {kind}")
    return files


def _pooling_of(path: Path) -> str:
    fields = json.loads(path.read_text())
    modes = [
        name.removeprefix("pooling_mode_") for name, on in fields.items() if name.startswith("pooling_mode_") and on
    ]
    if isinstance(fields.get("pooling_mode"), str):
        modes = [fields["pooling_mode"]]
    names = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise ConfigError(f"{path}: pooling must be mean or cls, got {' and '.join(modes) or 'none'}")
    return names[modes[0]]


def _max_length(model: Any, tokenizer: Any, config: EmbedConfig, files: _Files) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        positions -= _first_position(model)
    if config.max_length is not None:
        if positions and config.max_length > positions:
            raise ConfigError(f"max_length must be at most {positions} (the encoder's limit), got {config.max_length}")
        return config.max_length
    stated = files.max_length or getattr(tokenizer, "model_max_length", None)
    limits = [int(limit) for limit in (stated, positions) if limit and limit < 1_000_000]
    return min(limits) if limits else 512


def _first_position(model: Any) -> int:
    """Return the position id of a text's first token: RoBERTa counts from behind its padding's."""
    embeddings = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    unused = getattr(embeddings, "padding_idx", None)
    return 0 if unused is None else int(unused) + 1


def _fingerprint(model: Any) -> str:
    """Return a digest of the weights, rounded to bfloat16: the same for a float32 and a bfloat16 copy."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        rounded = parameter.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(rounded.view(torch.uint8).numpy() if rounded.numel() else b"")
    return digest.hexdigest()
