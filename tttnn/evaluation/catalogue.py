"""The methods that can be measured, one row each: a name, what it does in a sentence, and its look in every figure.

The only list of them: what measures, the flags' help, the report and the README go by it. Knows words and numbers of
looks. Does not know how anything is measured, nor colours; imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method's row.

    `about` says what it does, without a full stop. `style` is the number of its look among the report's styles; None:
    the grey of the base model. `neighbors`: whether it takes any, and so needs a datastore.
    """

    name: str
    about: str
    style: int | None
    neighbors: bool = True


BASE = MethodEntry("base", "the model as it is", None, neighbors=False)
TTT_NN = MethodEntry("ttt-nn", "trains on the nearest neighbors, one after another", 0)
SIFT = MethodEntry("ttt-nn-sift", "trains on neighbors that repeat each other little (SIFT)", 5)
GUARD = MethodEntry("ttt-nn-guard", "the state of ttt-nn under which the query is likeliest", 2)
LORA = MethodEntry("lora", "trains a low-rank update on the nearest neighbors", 4)
IN_CONTEXT = MethodEntry("in-context", "reads the neighbors before the query, trains nothing", 1)
TOGETHER = MethodEntry("ttt-nn+in-context", "trains on the neighbors and reads them before the query", 3)
DYNAMIC = MethodEntry("dynamic", "trains on each window of the document after scoring it", 7, neighbors=False)
INTERPOLATION = MethodEntry("interpolation", "mixes in how often each token occurs in the neighbors", 6)
REFERENCE = MethodEntry("tttlm-2024", "the published procedure: whole neighbors, moments carried", 8)
INDEX_SIZE = MethodEntry("index-size", "trains on the neighbors found in shares of the datastore", 12)

INSTANT = MethodEntry("instant", "merges experts of the datastore, trains nothing", 9, neighbors=False)
INSTANT_CONTEXT = MethodEntry("instant+context", "merges experts and reads the neighbors before the query", 10)
AUTO = MethodEntry("auto", "merges experts, reads 4 neighbors, trains on from there", 11)

CATALOGUE: Mapping[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        BASE,
        TTT_NN,
        SIFT,
        GUARD,
        LORA,
        IN_CONTEXT,
        TOGETHER,
        INSTANT,
        INSTANT_CONTEXT,
        AUTO,
        DYNAMIC,
        INTERPOLATION,
        REFERENCE,
        INDEX_SIZE,
    )
}
"""Name -> row, in the order in which methods are listed."""
