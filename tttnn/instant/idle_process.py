"""A process that trains the experts of clusters that queries miss, most missed first, at the lowest priority.

Knows a datastore, a model and its standard input, at whose end it ends at once. Does not know who asks, nor when it is
stopped for a while.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

import torch

from ..config import ExpertConfig
from ..datastore.datastore import Datastore
from ..errors import TttnnError
from ..lm.loading import load_model
from .fingerprint import fingerprint_of
from .manifest import MANIFEST, folder_of, read_experts
from .precompute import Precompute

_LOWEST = 19
_THREADS = 1  # the other processors are those of whoever asks next

_log = logging.getLogger("tttnn.instant")


def main(datastore: str, model: str, cache_dir: str | None) -> int:
    """Train until all experts are there; return the exit code.

    Experts that are there are gone on with, by their own settings; where there are none, the root is trained first.

    Args:
        datastore: its directory.
        model: demo name, hub id or directory.
        cache_dir: where demo models are kept; None: the default.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(_THREADS)
    try:
        loaded, tokenizer = load_model(model, cache_dir=cache_dir)
        with Datastore.open(datastore) as opened:
            fingerprint = fingerprint_of(loaded)
            folder = folder_of(opened.path, fingerprint)
            there = (folder / MANIFEST).exists()
            config = read_experts(folder, model=fingerprint).config if there else ExpertConfig()
            leaves = opened.manifest.unit == "document"
            Precompute(opened, loaded, tokenizer, config, leaves=leaves).run(watch=True)
    except (TttnnError, ValueError, OSError) as error:
        _log.warning("no experts are trained while the server is idle: %s", error)
        return 1
    return 0


def _end_with_input() -> None:
    """End this process when the one at the other end of its standard input is gone."""
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    os.nice(_LOWEST)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with_input, name="parent-watch", daemon=True).start()
    code = main(sys.argv[1], sys.argv[2], sys.argv[3] or None)
    sys.stderr.flush()
    os._exit(code)  # at once: threads of torch and the one that reads need no farewell
