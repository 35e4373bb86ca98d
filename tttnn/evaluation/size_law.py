"""How what is gained grows with the index: bits per byte over base in each share of it, and the slope per tenfold.

Knows lines of results. Does not know how a share is searched, files or models: sums up without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Interval, paired_bootstrap, slope_bootstrap
from .catalogue import BASE, INDEX_SIZE
from .records import Line
from .results import EvalResult, documents_by_group


@dataclass(frozen=True, slots=True)
class SizePoint:
    """One group with neighbors from one share of the datastore.

    `index_documents` is how many documents the share is of about; None where the results do not say. `found` is the
    mean number of neighbors, below k where the share holds fewer. `difference` and `ratio` are to base.
    """

    fraction: float
    index_documents: int | None
    found: float
    bits_per_byte: float
    difference: Interval
    ratio: Interval


@dataclass(frozen=True, slots=True)
class SizeLaw:
    """One group at k neighbors, over the size of the index.

    `slope` is by how much the ratio to base changes when the index grows tenfold: least squares through the points over
    the logarithm of the share, with the 95 % interval of the bootstrap over documents that the points' intervals are
    of. It knows nothing of how another draw of the shares would have turned out. None of a single share.
    """

    group: str
    k: int
    documents: int
    base_bits_per_byte: float
    points: list[SizePoint]
    slope: Interval | None

    def fitted(self, fraction: float) -> float:
        """Return the ratio that the fitted line gives for a share.

        Raises:
            ValueError: there is no line through a single share.
        """
        if self.slope is None:
            raise ValueError(f"points must be at least 2 for a line, got {len(self.points)}")
        middle = sum(math.log10(point.fraction) for point in self.points) / len(self.points)
        mean = sum(point.ratio.value for point in self.points) / len(self.points)
        return mean + self.slope.value * (math.log10(fraction) - middle)


def size_laws(result: EvalResult, k: int | None = None, *, seed: int = 0) -> list[SizeLaw]:
    """Return, for each component and both totals, what is gained over the size of the index.

    Args:
        result: with the method index-size; without it there is nothing to return.
        k: number of neighbors; None: the largest.
        seed: of the bootstrap, as of `EvalResult.summary`.
    """
    if INDEX_SIZE.name not in result.methods():
        return []
    base = result.of(BASE.name)
    lines = {d: line for d, line in result.of(INDEX_SIZE.name).items() if "fractions" in line.at(k).extra}
    if not lines:
        return []
    names = set.intersection(*(set(line.at(k).extra["fractions"]) for line in lines.values()))
    fractions = sorted((float(name), name) for name in names)
    total = result.settings.get("methods", {}).get(INDEX_SIZE.name, {}).get("index_documents")
    laws = []
    for group, strata, weights in documents_by_group(base, lines):
        documents = [d for stratum in strata for d in stratum]
        points = []
        before = math.nan
        for fraction, name in fractions:
            arrays = [_arrays(base, lines, stratum, name, k) for stratum in strata]
            paired = paired_bootstrap(arrays, weights, seed=seed)
            before = paired.before
            found = [lines[d].at(k).extra["found"][name] for d in documents]
            size = None if total is None else round(total * fraction)
            points.append(
                SizePoint(fraction, size, float(np.mean(found)), paired.after, paired.difference, paired.ratio)
            )
        slope = None
        if len(fractions) > 1:
            curves = []
            for stratum in strata:
                each = [_arrays(base, lines, stratum, name, k) for _, name in fractions]
                curves.append((each[0][0], np.stack([after for _, after, _ in each]), each[0][2]))
            slope = slope_bootstrap(curves, weights, [math.log10(fraction) for fraction, _ in fractions], seed=seed)
        largest = max(lines[d].at(k).k for d in documents)
        laws.append(SizeLaw(group, largest, len(documents), before, points, slope))
    return laws


def _arrays(
    base: dict[int, Line], lines: dict[int, Line], documents: list[int], name: str, k: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return nats under base, nats with neighbors of a share, and bytes, (documents,) each."""
    return (
        np.array([base[d].at().nats for d in documents], np.float64),
        np.array([lines[d].at(k).extra["fractions"][name] for d in documents], np.float64),
        np.array([lines[d].num_bytes for d in documents], np.float64),
    )
