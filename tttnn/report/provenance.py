"""How the numbers of a report came about: what totals and intervals are, which files, settings and versions.

Knows the settings of runs. Does not know what they show.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from ..evaluation.bootstrap import PILE_WEIGHTS
from ..evaluation.records import TOO_LITTLE
from ..version import __version__
from .data import ReportData, RunData
from .html import escape, one_line, settings_list


def how_measured(data: ReportData, command: str | None) -> str:
    """Say how totals and intervals were made, and list files, settings and versions."""
    parts = [
        "<p>Bits per byte are the negative log-likelihood of the scored text in bits, over its UTF-8 bytes; those of "
        "several documents are all their bits over all their bytes. Every method scores the same tokens. Intervals are "
        "95 % intervals of a paired bootstrap over documents (10,000 resamples, percentiles 2.5 and 97.5): each "
        "resample takes a document's values before and after together. Documents that share a source are resampled as "
        "if they were independent.</p>"
    ]
    for run in data.runs:
        if run.summary.pile_weight:
            outside = sorted(set(run.groups) - set(PILE_WEIGHTS))
            more = (
                f" Components outside the Pile do not enter it: {', '.join(map(one_line, outside))}." if outside else ""
            )
            parts.append(
                f"<p>{escape(run.name)}: the Pile-weighted total is the sum of the components' bits per byte, "
                f"weighted by "
                f"their share of the Pile (Gao et al. 2020, table 1), renormalised over the components present, which "
                f"make up {run.summary.pile_weight:.1f} % of it; its bootstrap draws documents within components, "
                f"n - 1 of n (Rao & Wu 1988), so that small components do not look certain."
                f"{escape(more + _lonely(run))}</p>"
            )
    for run in data.runs:
        parts.append(f"<h3>{escape(run.name)}</h3>")
        shown = {
            "model": ": ".join(filter(None, (run.model, run.model_description))) or "not named",
            "documents measured": run.documents,
            "documents with too little text": run.reasons.get(TOO_LITTLE, 0),
        }
        for i, (reason, count) in enumerate((why, n) for why, n in run.reasons.items() if why != TOO_LITTLE):
            shown[f"documents not measured ({i + 1})"] = f"{count}: {one_line(reason)}"
        for read in run.files:
            shown[f"file {read.path.name}"] = (
                f"sha256 {read.sha256}, {read.documents} documents, {', '.join(map(one_line, read.methods))}"
            )
        parts.append(settings_list(shown))
        parts.append(f"<details><summary>All settings</summary>{settings_list(run.settings)}</details>")
    parts.append("<h3>This page</h3>")
    versions = {"tttnn": __version__, "python": platform.python_version()}
    for package in ("numpy", "matplotlib"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    parts.append(settings_list(versions))
    if command is not None:
        parts.append(f"<p>Made by <code>{escape(command)}</code></p>")
    return "".join(parts)


def _lonely(run: RunData) -> str:
    """Warn of components of one document, which the weighted interval knows no spread of."""
    rows = [run.row(group, "base") for group in sorted(run.groups) if group in PILE_WEIGHTS]
    alone = [one_line(row.group) for row in rows if row.documents == 1]
    if not alone:
        return ""
    return (
        f" Nothing is known about the spread of components with one document ({', '.join(alone)}): they add no width "
        f"to the Pile-weighted interval, which is too narrow."
    )
