"""Linear layers of a bfloat16 encoder on the CPU whose bias is added inside of the matrix product.

torch's own layer first writes the bias to every row of the output, which the product then reads again; the operator
that torch's compiler takes for linear layers hands the bias to the product. Does not know what the layers are for.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from .attention import supported

_log = logging.getLogger("tttnn")

_TOLERANCE = 0.01
"""Relative distance of the operator's answer from float32 on a probe: bfloat16 rounds to 0.004."""


class FusedLinear(nn.Linear):
    """A linear layer without gradients; same weights, same answer but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``: (..., in_features) to (..., out_features), bfloat16 on the CPU."""
        return _product(input, self.weight, self.bias)


def fuse_biases(model: nn.Module) -> None:
    """Make linear layers of a model add their bias inside of the product, where that is faster and can be had.

    Those are torch's own layers with a bias, in bfloat16 and on the CPU, when no parameter of the model takes
    gradients, the processor has the instructions (`attention.supported`) and torch has the operator. Others stay as
    they are.
    """
    if any(parameter.requires_grad for parameter in model.parameters()) or not (supported() and _works()):
        return
    for module in model.modules():
        # A class of its own may do more than a product.
        if type(module) is not nn.Linear or module.bias is None:
            continue
        if module.weight.dtype is torch.bfloat16 and module.weight.device.type == "cpu":
            module.__class__ = FusedLinear


def _product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return result


@functools.cache
def _works() -> bool:
    """Return whether this torch has the operator, as it is called here, and it is right: its name promises nothing."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5, 64), (48, 64), (48,))
    states, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    try:
        with torch.inference_mode():
            products = _product(states, weight, bias).float()
    except (AttributeError, RuntimeError, TypeError) as error:
        _log.warning("encoders add biases after the product: this torch multiplies otherwise (%s)", error)
        return False
    exact = nn.functional.linear(states.float(), weight.float(), bias.float())
    return bool(products.shape == exact.shape and (products - exact).norm() <= _TOLERANCE * exact.norm())
