"""What each method gains, against what it costs.

Knows one run's numbers. Does not know how a figure is drawn.
"""

from __future__ import annotations

from ..evaluation.results import ALL
from . import figures
from .data import RunData
from .figures import Series
from .html import one_line
from .section import Section, counted
from .style import Style


def cost_section(run: RunData, styles: dict[str, Style]) -> Section:
    """Make the figure of cost against gain."""
    section = Section("Cost against gain")
    seconds = run.seconds_known
    series = []
    for method in run.methods:
        points = [
            (cost, row.ratio.value, row.k)
            for row in run.curve(ALL, method)
            if (cost := row.seconds if seconds else row.trained_tokens + row.context_tokens)
        ]
        # With no neighbors a method of neighbors is base: its seconds are those of looking for them.
        points = [point for point in points if point[2] > 0] or points
        if points:
            series.append(Series(method, one_line(method), [p[0] for p in points], [p[1] for p in points]))
    if not series:
        section.say("No method's cost is known: the file of seconds is missing, and no tokens of neighbors were read.")
        return section
    unit = "seconds per query" if seconds else "tokens trained on or read in the context, per query"
    section.draw(
        f"cost-{run.slug}",
        figures.draw_cost(series, styles, xlabel=f"{unit} (logarithmic)", ylabel="bits per byte, as a share of base"),
        "Cost against gain of each method",
        f"Mean {unit} against the ratio to base (1), {counted(run.row(ALL, 'base').documents, 'document')} together. "
        f"One "
        f"point per method and number of neighbors, joined along it and named at the largest; lower and further left "
        f"is "
        f"better." + (" Seconds count retrieval and training, not scoring." if seconds else ""),
    )
    return section
