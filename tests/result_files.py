"""Files of results that look like an evaluation's, made from a seed: no model is needed to test a report."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tttnn.evaluation.records import Line, Measured, Point, Seconds, Texts, UsedNeighbor
from tttnn.evaluation.result_file import ResultFile

METHODS = (
    *("base", "ttt-nn", "ttt-nn-sift", "ttt-nn-guard", "lora", "in-context", "ttt-nn+in-context", "interpolation"),
    "dynamic",
)
GROUPS = {
    "Github": (0.62, 0.78),
    "USPTO Backgrounds": (0.75, 0.93),
    "Enron Emails": (1.1, 0.86),
    "Wikipedia (en)": (0.88, 0.985),
    "FreeLaw": (0.7, 0.95),
    "Books3": (1.02, 1.008),
    "StackExchange": (0.93, 0.97),
    "DM Mathematics": (1.4, 0.72),
    "ArXiv": (0.81, 0.96),
    "PEPs": (0.83, 0.94),
}
CURVE = (0, 1, 2, 5, 10, 20)
# How much of ttt-nn's gain a method has, seconds per neighbor, tokens of neighbors it trains on and reads.
_KINDS = {
    "ttt-nn": (1.0, 1.2, 1, 0),
    "ttt-nn-sift": (1.04, 1.3, 1, 0),
    "ttt-nn-guard": (0.97, 1.0, 1, 0),
    "lora": (0.6, 0.9, 1, 0),
    "in-context": (0.35, 0.35, 0, 1),
    "ttt-nn+in-context": (1.2, 1.6, 1, 1),
    "interpolation": (0.12, 0.02, 0, 1),
    "dynamic": (0.2, 0.0, 0, 0),
}


def write_results(
    path: Path,
    *,
    protocol: str = "split",
    methods: tuple[str, ...] = METHODS,
    groups: dict[str, tuple[float, float]] | None = None,
    documents: int = 4,
    seconds: bool = True,
    texts: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a file of results with its sidecars.

    Args:
        path: the file.
        protocol: named in every line.
        methods: base first.
        groups: name -> base bits per byte and its ratio after all neighbors.
        documents: of each group.
        seconds: keep the file of seconds.
        texts: keep texts, made of these pieces: query, scored, neighbor, before, after.
        settings: further settings of the header.
        seed: of the numbers.
    """
    generator = random.Random(f"{seed} {protocol}")
    header = {
        "protocol": protocol,
        "methods": {name: {} if name == "base" else {"learning_rate": 5e-5, "clip_norm": None} for name in methods},
        "evaluation": {"protocol": protocol, "query_tokens": 1024, "scored_tokens": 1024, "curve": list(CURVE)},
        "model": {"name": "SmolLM2-135M", "fingerprint": "ad47cf82b63fe203"},
        "datastore": "794e65e2357d940ebb3396080d67d165",
    }
    file = ResultFile(path, header | (settings or {}), texts=texts is not None)
    position = 0
    for group, (level, target) in (groups if groups is not None else GROUPS).items():
        for _ in range(documents):
            size = generator.randrange(900, 4200)
            base = level * generator.lognormvariate(0, 0.25)
            gain = (1 - target) * generator.lognormvariate(0, 0.5) + generator.gauss(0, 0.012)
            file.append(_measured(generator, position, group, protocol, methods, size, base, gain, texts))
            position += 1
    file.close()
    if not seconds:
        Path(f"{path}.seconds").unlink()
    return path


def _measured(
    generator: random.Random,
    position: int,
    group: str,
    protocol: str,
    methods: tuple[str, ...],
    size: int,
    base: float,
    gain: float,
    texts: dict[str, str] | None,
) -> Measured:
    neighbors = [
        UsedNeighbor(generator.randrange(20_000), f"{generator.getrandbits(128):032x}", 0.2 + 0.03 * i, 512, (0, 900))
        for i in range(CURVE[-1])
    ]
    lines, spent, kept = [], [], []
    curves: dict[str, list[Point]] = {}
    for method in methods:
        share, slow, trained, read = _KINDS.get(method, (0.5, 1.0, 1, 0))
        ks = (0,) if method in ("base", "dynamic") else CURVE
        gains = {k: share * (1 - 0.82**k) / (1 - 0.82 ** CURVE[-1]) for k in ks}
        if len(ks) == 1:
            gains = {0: 0.0 if method == "base" else share}
        points = []
        for k in ks:
            bits = base * (1 - gain * gains[k]) * size
            points.append(Point(k, bits * 0.6931471805599453, None, k * trained, 480 * k * trained, 480 * k * read))
        if method == "ttt-nn-guard" and "ttt-nn" in curves:
            points = []
            for at in curves["ttt-nn"]:
                known = [point for point in curves["ttt-nn"] if point.k <= at.k]
                best = min(generator.sample(known, (len(known) + 1) // 2), key=lambda point: point.nats)
                points.append(Point(at.k, best.nats, None, at.steps, at.trained_tokens, 0, {"chosen": best.k}))
        curves[method] = points
        used = [] if method in ("base", "dynamic") else neighbors
        lines.append(
            Line(
                *(position, f"{position:032x}", group, method, protocol, size // 4, size, size // 6, 512, 2048),
                *(len(used), "neighbors", points, used),
            )
        )
        times = {point.k: 0.05 + slow * point.k + (0.4 if method == "dynamic" else 0.0) for point in points}
        times = {k: value * generator.uniform(0.9, 1.1) if method != "base" else 0.0 for k, value in times.items()}
        spent.append(Seconds(position, method, {"search": 0.05, "train": max(times.values())}, times))
        if texts is not None:
            excerpts = [(neighbor.id, texts["neighbor"]) for neighbor in used]
            kept.append(
                Texts(position, method, texts["query"], texts["scored"], excerpts, texts["before"], texts["after"])
            )
    return Measured(None, lines, spent, kept)
