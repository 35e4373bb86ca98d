"""What tells one embedder from another: everything that decides a vector, as a datastore keeps and compares it.

Knows which fields there are, and what it means that one is absent. Does not know encoders beyond their weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import EmbedConfig

if TYPE_CHECKING:
    from torch import nn

_ABSENT: dict[str, Any] = {"prompt": "", "include_prompt": True, "lower_case": False, "truncation": "right"}
"""What fields that are not there mean: what was computed before there were such fields. Equal ones are left out."""


def identity_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields without those whose absence means the same."""
    return {name: value for name, value in fields.items() if name not in _ABSENT or value != _ABSENT[name]}


def differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Return in which fields an identity differs from another, each as "name is value, expected value".

    Args:
        expected: An identity; or of imported vectors, whose embedder is unknown, the few fields that are known.
        found: An identity.
    """
    wanted = _ABSENT | dict(expected) if "weights" in expected else expected
    given = _ABSENT | dict(actual)
    return [
        f"{name} is {given.get(name)!r}, expected {value!r}"
        for name, value in wanted.items()
        if given.get(name) != value
    ]


def settings_of(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> EmbedConfig:
    """Return the settings with which `Embedder.load` makes the embedder of an identity, whatever its files say now.

    Args:
        identity: As an embedder gave it.
        settings: Those it was made with, as plain values; the earlier ones have fewer fields.
    """
    fields = _ABSENT | dict(identity)
    return EmbedConfig(**settings).with_(
        pooling=fields["pooling"],
        normalize="yes" if fields["normalize"] else "no",
        max_length=fields["max_length"],
        prompt=fields["prompt"],
        lower_case="yes" if fields["lower_case"] else "no",
        truncation=fields["truncation"],
        truncate_dim=fields["dim"],
    )


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the weights, rounded to bfloat16: the same for a float32 and a bfloat16 copy."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        rounded = parameter.detach().to("cpu", torch.bfloat16).contiguous()
        if rounded.numel():
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()
