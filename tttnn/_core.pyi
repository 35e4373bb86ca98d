"""Types of the extension. Written by hand; stubtest compares it with the module."""

from collections.abc import Sequence
from typing import Any

from typing_extensions import Buffer

def build_info() -> dict[str, Any]: ...

class Block(Buffer):
    def __init__(self, size: int) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...

def copy_spans(
    destination: Block, source: Block, offsets: Sequence[int], sizes: Sequence[int], max_threads: int = 0
) -> None: ...
def fingerprint_spans(
    source: Block, offsets: Sequence[int], sizes: Sequence[int], max_threads: int = 0
) -> list[int]: ...
def keep_freed_memory() -> bool: ...

class Adamw:
    def __init__(
        self,
        tensors: Sequence[tuple[int, int, int, int, int, int, str]],
        *,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        clip_norm: float,
    ) -> None: ...
    def fresh_weights(self) -> None: ...
    def fresh_moments(self) -> None: ...
    def step(self, gradients: Sequence[int], learning_rate: float, max_threads: int = 0) -> tuple[float, int]: ...
