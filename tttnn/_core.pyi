"""Types of the extension. Written by hand; stubtest compares it with the module."""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

_P = ParamSpec("_P")
_T = TypeVar("_T")

def build_info() -> dict[str, Any]: ...

class StoreReader:
    def __init__(self, path: str, pread: bool = False) -> None: ...
    def __len__(self) -> int: ...
    def read_text(self, document: int) -> str: ...
    def read_texts(self, documents: npt.NDArray[np.int64], threads: int = 0) -> list[str]: ...
    def read_meta(self, document: int) -> bytes: ...
    def read_metas(self, documents: npt.NDArray[np.int64]) -> list[bytes]: ...
    def sources(self) -> list[str]: ...
    def source_codes(self) -> npt.NDArray[np.int32]: ...
    def dictionary(self) -> bytes: ...
    def info(self) -> dict[str, Any]: ...
    def verify(self, full: bool = True, progress: Callable[[int, int], None] | None = None) -> None: ...

class StoreWriter:
    def __init__(
        self,
        path: str,
        level: int,
        dictionary_bytes: int,
        threads: int,
        resume: bool,
        commit_bytes: int,
        dictionary: bytes,
    ) -> None: ...
    def append(self, text: str, meta: bytes, source: str) -> int: ...
    def finish(self) -> dict[str, Any]: ...
    def abandon(self) -> None: ...
    @property
    def documents(self) -> int: ...
    @property
    def committed(self) -> int: ...
    @property
    def locked(self) -> bool: ...

def train_dictionary(texts: list[str], dictionary_bytes: int, level: int) -> bytes: ...

class MappedFile:
    def __init__(self, path: str) -> None: ...
    @property
    def broken(self) -> bool: ...
    @property
    def bytes(self) -> npt.NDArray[np.uint8]: ...

class SharedMemory:
    @overload
    def __init__(self, size: int) -> None: ...
    @overload
    def __init__(self, descriptor: int, size: int) -> None: ...
    @property
    def size(self) -> int: ...
    def fileno(self) -> int: ...
    def write(self, offset: int, data: npt.NDArray[np.uint8]) -> None: ...
    def seal(self) -> None: ...

def fingerprint(data: npt.NDArray[np.uint8], max_threads: int = 0) -> int: ...

class Block(Buffer):
    @overload
    def __init__(self, size: int) -> None: ...
    @overload
    def __init__(self, shared: SharedMemory) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...

def copy_spans(
    destination: Block, source: Block, offsets: Sequence[int], sizes: Sequence[int], max_threads: int = 0
) -> None: ...
def copy_spans_cuda(
    destination: int,
    source: int,
    offsets: Sequence[int],
    sizes: Sequence[int],
    *,
    limit: int,
    device: int,
    stream: int,
) -> None: ...
def fingerprint_spans(
    source: Block, offsets: Sequence[int], sizes: Sequence[int], max_threads: int = 0
) -> list[int]: ...
def keep_freed_memory() -> bool: ...

class AdamwTensor:
    def __init__(self, *, size: int, dtype: str, m: int, v: int, master: int = 0, rounded: int = 0) -> None: ...

class Adamw:
    def __init__(
        self,
        tensors: Sequence[AdamwTensor],
        *,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        clip_norm: float,
    ) -> None: ...
    def fresh_moments(self) -> None: ...
    def step(
        self,
        gradients: Sequence[int],
        sources: Sequence[int],
        targets: Sequence[int],
        learning_rate: float,
        max_threads: int = 0,
    ) -> tuple[float, int]: ...

class AdamwCuda:
    def __init__(
        self,
        tensors: Sequence[AdamwTensor],
        *,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        clip_norm: float,
    ) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
    def fresh_moments(self) -> None: ...
    def step(
        self,
        gradients: Sequence[int],
        sources: Sequence[int],
        targets: Sequence[int],
        learning_rate: float,
        *,
        scratch: int,
        device: int,
        stream: int,
    ) -> tuple[float, int]: ...

def pool(
    hidden: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    mask: npt.NDArray[np.uint8] | None,
    rows: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
    *,
    pooling: str,
    normalize: bool,
    threads: int = 0,
    level: str = "auto",
) -> int: ...
def pool_packed(
    hidden: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    offsets: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
    *,
    pooling: str,
    normalize: bool,
    threads: int = 0,
    level: str = "auto",
) -> int: ...
def pool_reference(
    hidden: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    mask: npt.NDArray[np.uint8] | None,
    rows: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
    *,
    pooling: str,
    normalize: bool,
) -> None: ...
def pool_cuda(
    hidden: int,
    *,
    bfloat16: bool,
    batch: int,
    tokens: int,
    dim: int,
    mask: int,
    rows: int,
    out: int,
    bad: int,
    pooling: str,
    normalize: bool,
    stream: int,
) -> None: ...

class HnswBuilder:
    def __init__(self, *, dim: int, metric: str, capacity: int, M: int, ef_construction: int, seed: int) -> None: ...
    def add(self, vectors: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> None: ...
    def save(self, path: str) -> None: ...

class HnswIndex:
    def __init__(
        self,
        bytes: npt.NDArray[np.uint8],
        copies: npt.NDArray[np.int64],
        *,
        dim: int,
        metric: str,
        ids: int,
        name: str,
    ) -> None: ...
    @property
    def nodes(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def node_ids(self) -> npt.NDArray[np.int64]: ...
    @property
    def vectors(self) -> npt.NDArray[np.float32]: ...
    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        ef: int,
        allowed: npt.NDArray[np.uint8] | None = None,
        method: str = "auto",
        threads: int = 0,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64], int]: ...

class FullVectorWriter:
    def add(self, vectors: npt.NDArray[np.float32]) -> None: ...
    def finish(self) -> None: ...

class CompactBuilder:
    def __init__(
        self, *, dim: int, vectors: str, metric: str, capacity: int, M: int, ef_construction: int, seed: int
    ) -> None: ...
    def add(self, vectors: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> None: ...
    def save(self, links: str, vectors: str) -> None: ...
    def full_writer(self, path: str) -> FullVectorWriter: ...

class CompactIndex:
    def __init__(
        self, folder: str, copies: npt.NDArray[np.int64], *, dim: int, vectors: str, metric: str, ids: int
    ) -> None: ...
    @property
    def nodes(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def walked_bytes(self) -> int: ...
    def require_whole(self) -> None: ...
    def verify(self, threads: int = 0) -> None: ...
    def read(self, nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]: ...
    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        ef: int,
        allowed: npt.NDArray[np.uint8] | None = None,
        method: str = "auto",
        threads: int = 0,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64], int]: ...

def scan(
    vectors: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    k: int,
    *,
    metric: str,
    allowed: npt.NDArray[np.uint8] | None = None,
    threads: int = 0,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]: ...
def repair_store(
    path: str, target: str, threads: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]: ...
def retried(function: Callable[..., None]) -> Callable[..., None]: ...
def undoing(function: Callable[_P, _T], undo: Callable[_P, None]) -> Callable[_P, _T]: ...
def attention_supported() -> bool: ...

class Attention:
    def __init__(self) -> None: ...
    def forward(
        self,
        sizes: tuple[int, int, int, int],
        scale: float,
        q: tuple[int, int, int],
        k: tuple[int, int, int],
        v: tuple[int, int, int],
        out: tuple[int, int, int],
        lse: int,
        max_threads: int = 0,
    ) -> None: ...
    def backward(
        self,
        sizes: tuple[int, int, int, int],
        scale: float,
        q: tuple[int, int, int],
        k: tuple[int, int, int],
        v: tuple[int, int, int],
        out: tuple[int, int, int],
        lse: int,
        dout: tuple[int, int, int],
        dq: tuple[int, int, int],
        dk: tuple[int, int, int],
        dv: tuple[int, int, int],
        max_threads: int = 0,
    ) -> None: ...
    def forward_packed(
        self,
        sizes: tuple[int, int, int, int],
        scale: float,
        offsets: Sequence[int],
        q: tuple[int, int, int],
        k: tuple[int, int, int],
        v: tuple[int, int, int],
        out: tuple[int, int, int],
        max_threads: int = 0,
    ) -> None: ...
