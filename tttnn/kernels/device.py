"""Which devices there are: a name is one of torch's and of this machine, or refused in a sentence.

Does not know what is computed.
"""

from __future__ import annotations

from ..errors import ConfigError


def check_device(name: str) -> None:
    """Raise a ConfigError where torch has no device of this name, or this machine has none.

    Args:
        name: torch's name of a device, like cpu or cuda:0.
    """
    import torch

    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ConfigError(f"device must be one of torch's, like cpu or cuda:0, got {name!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device must be one of this machine, got {name!r}: torch finds no CUDA device")
