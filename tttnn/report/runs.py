"""Result files -> what a report shows: files of one evaluation put together, one run for each protocol and setting.

Knows which settings may differ between files that stand in one table. Does not know the page.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..evaluation.catalogue import TTT_NN
from ..evaluation.result_file import read_results
from ..evaluation.results import EvalResult, Summary
from ..files import describe_file

MAIN = TTT_NN.name
"""The method that figures of one method show, where it was measured."""

_TOLERANCE = 1e-4
"""Relative difference above which two files' measurements of one document are not the same: other numbers of threads
add up in another order."""


@dataclass(frozen=True, slots=True)
class ResultFileRead:
    """A file of results as it was read."""

    path: Path
    sha256: str
    documents: int
    methods: list[str]


@dataclass(slots=True)
class Run:
    """One evaluation: what was measured under one protocol with one set of settings.

    Attributes:
        name: the protocol, numbered where several runs have it.
        result: the lines of all its files.
        summary: what they say together.
        main: the method that figures of one method show; None where only base was measured.
        files: its files.
    """

    name: str
    result: EvalResult
    summary: Summary
    main: str | None
    files: list[ResultFileRead]


def read_runs(paths: Sequence[str | os.PathLike[str]], *, seed: int = 0) -> list[Run]:
    """Read files of results and put together those of one evaluation.

    Files belong to one evaluation where their settings agree, those of a method that both hold too, but for the
    numbers of neighbors, the limit of documents and threads: a later file may bring further methods or documents. A
    document that two files measured by one method counts once.

    Args:
        paths: files of results.
        seed: of the bootstrap.

    Raises:
        ConfigError: a file holds no measured document, or two files of one evaluation contradict each other.
    """
    gathered: list[tuple[EvalResult, list[ResultFileRead]]] = []
    for path in map(Path, paths):
        result = read_results(path)
        if not result.lines:
            raise ConfigError(f"{path}: must hold at least one measured document, got none")
        documents = len({line.document for line in result.lines})
        read = ResultFileRead(path, describe_file(path)["sha256"], documents, result.methods())
        same = next(((other, files) for other, files in gathered if _agree(other, result)), None)
        if same is None:
            gathered.append((result, [read]))
        else:
            _add(same[0], result, path)
            same[1].append(read)
    if not gathered:
        raise ConfigError("results must be at least one file, got none")
    protocols = [result.lines[0].protocol for result, _ in gathered]
    runs = []
    for i, (result, files) in enumerate(gathered):
        if "base" not in result.methods():
            raise ConfigError(f"{files[0].path}: must hold the method base, got {', '.join(result.methods())}")
        number = protocols[: i + 1].count(protocols[i])
        name = f"{protocols[i]} ({number})" if protocols.count(protocols[i]) > 1 else protocols[i]
        others = [method for method in result.methods() if method != "base"]
        main = MAIN if MAIN in others else next(iter(others), None)
        runs.append(Run(name, result, result.summary(seed=seed), main, files))
    return runs


def _shared(result: EvalResult) -> str:
    """Return the settings in which files of one evaluation agree, as a key."""
    # The shares of the index stand among the settings of the one method that they are of.
    apart = ("methods", "curve", "limit", "threads", "index_fractions", "index_seed")
    settings = {key: value for key, value in result.settings.items() if key not in apart}
    evaluation = settings.get("evaluation")
    if isinstance(evaluation, dict):
        settings["evaluation"] = {key: value for key, value in evaluation.items() if key not in apart}
    if isinstance(settings.get("model"), dict):
        settings["model"] = {key: value for key, value in settings["model"].items() if key != "description"}
    return json.dumps(settings | {"protocol": result.lines[0].protocol}, sort_keys=True)


def _methods(result: EvalResult) -> dict[str, Any]:
    """Return the settings of each method."""
    methods = result.settings["methods"]
    return dict(methods) if isinstance(methods, dict) else dict.fromkeys(methods)


def _agree(a: EvalResult, b: EvalResult) -> bool:
    first, second = _methods(a), _methods(b)
    return _shared(a) == _shared(b) and all(first[name] == second[name] for name in first.keys() & second.keys())


def _add(result: EvalResult, more: EvalResult, path: Path) -> None:
    digests = {line.document: line.digest for line in result.lines}
    known = {(line.document, line.method): line for line in result.lines}
    for line in more.lines:
        if digests.get(line.document, line.digest) != line.digest:
            raise ConfigError(
                f"{path}: document {line.document} must be the one of the other files (digest "
                f"{digests[line.document]}), got {line.digest}"
            )
        before = known.get((line.document, line.method))
        if before is None:
            result.lines.append(line)
            continue
        first = {point.k: point.nats for point in before.points}
        for point in line.points:
            if not math.isclose(first.get(point.k, point.nats), point.nats, rel_tol=_TOLERANCE):
                raise ConfigError(
                    f"{path}: document {line.document} under {line.method} at k = {point.k} must be as in the other "
                    f"files, {first[point.k]:.6f} nats, got {point.nats:.6f}"
                )
    # Lines of one document stay together, in the order of the documents, as in a file of one run.
    result.lines.sort(key=lambda line: line.document)
    result.seconds = more.seconds | result.seconds
    if more.texts is not None or result.texts is not None:
        result.texts = (more.texts or {}) | (result.texts or {})
    measured = {line.document for line in result.lines}
    left = more.unmeasured | result.unmeasured
    result.unmeasured = {document: why for document, why in left.items() if document not in measured}
    result.settings = result.settings | {"methods": _methods(result) | _methods(more)}
    if model_description(result) is None and model_description(more) is not None:
        result.settings["model"] = more.settings["model"]


def model_description(result: EvalResult) -> str | None:
    """Return the model in full; None where the settings do not say more than its name."""
    model = result.settings.get("model")
    described = model.get("description") if isinstance(model, dict) else None
    return described if isinstance(described, str) and described else None


def model_name(result: EvalResult) -> str | None:
    """Return the name of the model that was measured; None where the settings hold none."""
    name = result.settings.get("model_name", result.settings.get("model"))
    if isinstance(name, dict):
        name = name.get("name")
    # A bare fingerprint of the weights is no name.
    return name if isinstance(name, str) and not (len(name) >= 32 and set(name) <= set("0123456789abcdef")) else None
