"""Memory and kernels of the fused step on a CUDA device: torch holds the memory, the core launches on torch's stream.

Knows addresses and streams. Does not know arenas, gradients or when a query ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import tttnn._core as _core

from ..errors import AdaptError, DeviceError


class DeviceBlock:
    """Zeroed memory on a device, as `_core.Block` is on the CPU."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._memory = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        self.address = self._memory.data_ptr()

    def view(self, dtype: torch.dtype, count: int, offset: int) -> torch.Tensor:
        """Return numbers of it, `count` of them from byte `offset` on."""
        return self._memory[offset : offset + count * dtype.itemsize].view(dtype)


class DeviceAdamw:
    """`_core.Adamw` for tensors on a CUDA device, with the same methods.

    A step waits until the device has run it: the gradient's norm decides whether it counts.
    """

    def __init__(
        self,
        tensors: Sequence[_core.AdamwTensor],
        *,
        device: torch.device,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        clip_norm: float,
    ) -> None:
        self._core = _core.AdamwCuda(
            tensors, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay, clip_norm=clip_norm
        )
        self._device = device
        self._scratch = torch.empty(self._core.scratch_bytes, dtype=torch.uint8, device=device)

    def fresh_moments(self) -> None:
        """Let the next step start from zero moments, steps counted from 0."""
        self._core.fresh_moments()

    def step(
        self,
        gradients: Sequence[int],
        sources: Sequence[int],
        targets: Sequence[int],
        learning_rate: float,
        max_threads: int = 0,
    ) -> tuple[float, int]:
        """Train as `_core.Adamw.step` does; return the norm before clipping and the bytes moved."""
        del max_threads  # the processor's
        return self._core.step(
            gradients,
            sources,
            targets,
            learning_rate,
            scratch=self._scratch.data_ptr(),
            device=self._device.index,
            stream=torch.cuda.current_stream(self._device).cuda_stream,
        )


def require_native(device: torch.device) -> None:
    """Refuse a device that the native step cannot train on.

    Raises:
        AdaptError: The device is neither cpu nor cuda.
        DeviceError: It is cuda, and this build has no CUDA kernels.
    """
    if device.type not in ("cpu", "cuda"):
        raise AdaptError(f"the native optimizer must have weights on cpu or cuda, got {device}. Use torch_adamw.")
    if device.type == "cuda" and not _core.build_info()["cuda"]:
        raise DeviceError(
            f"the native optimizer must have weights on cpu in this build, got {device}. Use torch_adamw, or install "
            "a build with CUDA."
        )
