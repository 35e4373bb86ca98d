"""lm-evaluation-harness's own command line, with the model ``tttnn`` and the packaged tasks known to it.

Knows where that command line is, which is no public name of it. Does not know what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import MissingExtraError

TASKS = Path(__file__).parent / "tasks"
"""Folder of the packaged tasks, for ``--include_path``."""


def run(arguments: Sequence[str]) -> None:
    """Run lm-evaluation-harness's own command line, with this model and the packaged tasks known to it.

    Args:
        arguments: as after ``lm-eval``. Where they name no ``--include_path``, the packaged tasks' folder is added.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed, or has no such command line.
    """

    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise MissingExtraError(
            f"lm-evaluation-harness must have the command line of 0.4.10, got {error}. Install it with: "
            "pip install 'lm-eval>=0.4.10,<0.5'"
        ) from error

    words = list(arguments)
    if words and not any(word.partition("=")[0] == "--include_path" for word in words):
        words += ["--include_path", str(TASKS)]
    before = sys.argv
    sys.argv = ["lm-eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
