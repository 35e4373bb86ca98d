"""A change of a model's linear layers, W + scale B A, as numbers apart from the model.

Knows matrices and the names of layers. Does not know where they come from, arenas or queries.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import AdaptError
from .lora import drawn, is_transposed, write_adapter


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """For each linear layer by name: A, (rank, inputs), and B, (outputs, rank), both float32; and their scale."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    scale: float

    @property
    def rank(self) -> int:
        """Rows of each A."""
        return next((len(a) for a, _ in self.layers.values()), 0)

    def changed(self, name: str, weight: Tensor, transposed: bool) -> Tensor:
        """Return a layer's weight with its product added, float32 in the weight's shape: one product, one rounding.

        Args:
            name: of the layer.
            weight: as the model holds it.
            transposed: whether it is (inputs, outputs), as GPT-2's are.
        """
        a, b = (matrix.to(weight.device) for matrix in self.layers[name])
        before = weight.detach().float()
        if transposed:
            return torch.addmm(before, a.t(), b.t(), alpha=self.scale)
        return torch.addmm(before, b, a, alpha=self.scale)

    def save(self, path: str | os.PathLike[str], model: nn.Module) -> None:
        """Write the matrices as a directory that peft loads as an adapter of the model.

        Args:
            path: The directory; made where there is none.
            model: Whose layers they change.

        Raises:
            AdaptError: Some of the layers are transposed and some are not, which peft has no word for.
        """
        transposed = {is_transposed(model.get_submodule(name)) for name in self.layers}
        if len(transposed) > 1:
            raise AdaptError("layers must all be transposed or none for an adapter of peft, got some of each")
        base = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
        write_adapter(path, self.layers, alpha=self.scale * self.rank, transposed=transposed == {True}, base_model=base)


def shared_a(shapes: Mapping[str, tuple[int, int]], *, rank: int, seed: int) -> dict[str, Tensor]:
    """Draw the A of each layer, (rank, inputs), by a seed and the layer's name: the same on every machine.

    Args:
        shapes: outputs and inputs of each layer.
        rank: of the matrices.
        seed: of the draw.
    """
    return {name: drawn(rank, inputs, f"{seed} {name}") for name, (_, inputs) in shapes.items()}


def digest_of_matrices(matrices: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes and float32 values, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(matrices):
        digest.update(f"{name} {tuple(matrices[name].shape)}\n".encode())
        digest.update(matrices[name].detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()
