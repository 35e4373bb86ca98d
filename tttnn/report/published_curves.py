"""The published curves of Hardt & Sun (ICLR 2024): bits per byte after 0 to 50 neighbors, by model and task.

Knows the names that the Pile's components have there and here. Does not know our results.

The figures are those of the paper's own result files (arXiv:2305.18466), rounded to five digits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TOTAL = "pile_all"
"""Name of the published total: the tasks weighted by their share of the Pile."""

TASKS: dict[str, str] = {
    "ArXiv": "pile_arxiv",
    "BookCorpus2": "pile_bookcorpus2",
    "Books3": "pile_books3",
    "DM Mathematics": "pile_dm-mathematics",
    "Enron Emails": "pile_enron",
    "EuroParl": "pile_europarl",
    "FreeLaw": "pile_freelaw",
    "Github": "pile_github",
    "Gutenberg (PG-19)": "pile_gutenberg",
    "HackerNews": "pile_hackernews",
    "NIH ExPorter": "pile_nih-exporter",
    "OpenSubtitles": "pile_opensubtitles",
    "OpenWebText2": "pile_openwebtext2",
    "PhilPapers": "pile_philpapers",
    "Pile-CC": "pile_pile-cc",
    "PubMed Abstracts": "pile_pubmed-abstracts",
    "PubMed Central": "pile_pubmed-central",
    "StackExchange": "pile_stackexchange",
    "USPTO Backgrounds": "pile_uspto",
    "Ubuntu IRC": "pile_ubuntu-irc",
    "Wikipedia (en)": "pile_wikipedia",
    "YoutubeSubtitles": "pile_youtubesubtitles",
}
"""``pile_set_name`` of the Pile's documents -> name of the published task."""

_RUNS: dict[tuple[str, bool], str] = {
    ("gpt2", False): "GPT-2 117M",
    ("gpt2", True): "GPT-2 117M, disjoint halves",
    ("gpt2-large", False): "GPT-2 large 774M",
    ("gpt-neo-1.3b", False): "GPT-Neo 1.3B",
}
"""(model, whether query and scored text are disjoint halves) -> name of the published run."""


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One published run.

    Attributes:
        name: model, and protocol where it is not the paper's main one.
        curves: task -> bits per byte after 0, 1, ... 50 neighbors.
    """

    name: str
    curves: dict[str, tuple[float, ...]]

    def curve(self, group: str) -> tuple[float, ...] | None:
        """Return the curve of one of the Pile's components by its ``pile_set_name``; None where there is none."""
        return self.curves.get(TASKS.get(group, ""))


@cache
def published() -> tuple[str, tuple[PublishedRun, ...]]:
    """Return where the figures come from, and the published runs."""
    fields = json.loads(files("tttnn.report").joinpath("published_curves.json").read_text(encoding="utf-8"))
    runs = (
        PublishedRun(name, {task: tuple(curve) for task, curve in curves.items()})
        for name, curves in fields["runs"].items()
    )
    return fields["source"], tuple(runs)


def matching_run(model: str, protocol: str) -> PublishedRun | None:
    """Return the published run of a model under a protocol; None where nothing of that name was published.

    Args:
        model: name, hub id or directory; its last part counts, in any case.
        protocol: ``full`` is the paper's main protocol, ``split-bare`` its disjoint halves; ``split`` is not in it.
    """
    if protocol not in ("full", "split-bare"):
        return None
    wanted = _RUNS.get((model.rstrip("/").rsplit("/", 1)[-1].lower(), protocol == "split-bare"))
    return next((run for run in published()[1] if run.name == wanted), None)
