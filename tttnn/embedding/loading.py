"""An encoder with its tokenizer, loaded from files: every weight that its states depend on was in them.

Knows transformers' loading. Does not know how texts are embedded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import models
from ..errors import UnknownModelError, some
from .encoder_files import EncoderFiles, encoder_directory, read_encoder_files


class LoadedEncoder(NamedTuple):
    """An encoder of transformers in eval mode, its tokenizer, and what its files say about embedding."""

    model: Any
    tokenizer: Any
    files: EncoderFiles


def load_encoder(name: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> LoadedEncoder:
    """Load an encoder in float32 with its tokenizer; of an encoder-decoder the encoder.

    Args:
        name: A demo name, a directory of transformers or sentence-transformers, or a hub id.
        cache_dir: Where demo models are kept; None for the default.

    Raises:
        UnknownModelError: There is no such model, its files cannot be loaded, or lack weights.
        ConfigError: Its files ask for what tttnn does not compute.
    """
    from transformers import AutoModel, AutoTokenizer

    with models.loading(name):
        directory = encoder_directory(models.resolve(name, cache_dir=cache_dir))
        files = read_encoder_files(directory)
    if not Path(files.folder, "config.json").is_file():
        raise UnknownModelError(f"model must be a directory with config.json, got {files.folder!r}")
    with models.loading(name, files.folder):
        tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
        whole, info = AutoModel.from_pretrained(
            files.folder,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        if wrong := models.loading_fault(info):
            raise UnknownModelError(f"model {os.fspath(name)!r} could not be loaded: {wrong}.")
        model = encoder_of(whole).eval()
        lacking = _missing_weights(whole, model, info["missing_keys"])
        if lacking and _depend_on(model, lacking.values()):
            raise UnknownModelError(
                f"model {os.fspath(name)!r} could not be loaded: its files must hold all weights of "
                f"{type(whole).__name__}, but lack {some(sorted(lacking))}."
            )
    return LoadedEncoder(model, tokenizer, files)


def encoder_of(model: Any) -> Any:
    """Return the encoder of an encoder-decoder; another model itself."""
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model


def _missing_weights(whole: Any, encoder: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """Return those of the named weights that are the encoder's."""
    own = {id(weight) for weight in [*encoder.parameters(), *encoder.buffers()]}
    every = dict(whole.named_parameters(remove_duplicate=False)) | dict(whole.named_buffers(remove_duplicate=False))
    return {
        name: every[name]
        for name in names
        if name in every and id(every[name]) in own and every[name].is_floating_point()
    }


def _depend_on(model: Any, weights: Iterable[Tensor]) -> bool:
    """Return whether states depend on weights that files lack, as they do not on a pooler's; those become zeros.

    They were drawn at random and are no loss. Whatever does not read them gives the same states to the last bit.
    """
    weights = list(weights)
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for weight in weights:
            weight.normal_(generator=random)
        drawn = _states(model)
        for weight in weights:
            weight.zero_()
        return not torch.equal(drawn, _states(model))


def _states(model: Any) -> Tensor:
    ids = torch.tensor([[3, 5, 4, 5, 3]])
    states: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return states
