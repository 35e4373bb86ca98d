"""Many queries at once: one a line, or JSON lines with a query in each.

Knows files and standard input. Does not know what is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click

from .bars import Bars
from .exit_codes import FAILED
from .flags import Query
from .printing import print_json


def one_or_many(query: str | None, queries: str | None) -> None:
    """Raise a UsageError unless there is either a query or a file of them."""
    if (query is None) == (queries is None):
        raise click.UsageError("give either a QUERY or --queries FILE")


def read_queries(path: str) -> Iterator[tuple[int, Any]]:
    """Read the queries of a file, ``-`` for standard input, with the numbers of their lines; blank lines are none.

    Where the first line is a JSON object with a query, every line should be one, and is None where it is not; else
    each line is a query as it stands.
    """
    in_json: bool | None = None
    with click.open_file(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            line = line.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff" if number == 1 else "")
            if not line.strip():
                continue
            if in_json is None:
                in_json = _query_in(line) is not None
            yield number, _query_in(line) if in_json else line


def _query_in(line: str) -> Any:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row.get("query") if isinstance(row, dict) else None


def answer_all(path: str, answer: Callable[[str], dict[str, Any]], bars: Bars) -> None:
    """Answer every query of a file and print one JSON line for each; one that fails has an error instead.

    Exit code 1 where one failed.
    """
    failed = False
    for done, (number, query) in enumerate(read_queries(path), 1):
        try:
            if not isinstance(query, str):
                raise ValueError(f"line {number} must be a JSON object with a query, a text")
            answered = answer(Query().convert(query, None, None))
        except (click.BadParameter, ValueError, RuntimeError) as error:
            failed = True
            message = error.message if isinstance(error, click.BadParameter) else str(error)
            answered = {"query": query, "error": message}
        print_json({"line": number, **answered})
        bars("queries", done, None)
    if failed:
        raise SystemExit(FAILED)
