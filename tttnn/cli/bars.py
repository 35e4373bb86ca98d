"""How far a long call is: bars on a terminal and in a notebook, else a line now and then on standard error.

Knows stages by name. Does not know what they do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from html import escape
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

_SECONDS = 30.0
_SHARE = 0.1
_DRAWN_SECONDS = 0.2  # between two pictures of bars in a notebook
_QUIET_SECONDS = 2.0  # a command that takes no longer says nothing


class Bars:
    """Shows how far each stage is, with rates where a build report has them: a `config.Progress`.

    On a terminal and in a notebook a bar for each stage, which never goes back. Elsewhere a line every 30 seconds or
    10 %, whichever comes first.

    >>> with Bars() as bars:                                                  # doctest: +SKIP
    ...     tttnn.Datastore.build("pile-00", documents, embedder, progress=bars)

    Args:
        report: a build report whose stages have rates.
        console: where to; None: standard error.
        clock: seconds.
    """

    def __init__(
        self, report: Any = None, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True)
        self._report = report
        self._clock = clock
        self._on_terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self._progress = Progress(
            *_columns(self.console.width), console=self.console, expand=True, disable=not self._on_terminal
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, _Line] = {}
        self._page = _Page(clock) if self.console.is_jupyter else None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._page is not None:
            self._page.show()

    def __call__(self, stage: str, done: int, total: int | None, *, rates: dict[str, float] | None = None) -> None:
        """Show how far a stage is, at these rates a second or at those of the report."""
        if rates is None:
            counts = None if self._report is None else self._report.stages.get(stage)
            rates = {} if counts is None else counts.rates
        if self._page is not None:
            self._page(stage, done, total, rates)
            return
        if not self._on_terminal:
            line = self._lines.setdefault(stage, _Line(stage, self._clock()))
            if (sentence := line.due(done, total, rates, self._clock())) is not None:
                self.tell(sentence)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, rates="")
        task = self._progress.tasks[self._tasks[stage]]
        self._progress.update(
            task.id, completed=max(done, task.completed), total=total, rates=_rates(rates, self.console.width)
        )

    def tell(self, sentence: str) -> None:
        """Say something on standard error, terminal or not."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _columns(width: int) -> list[ProgressColumn]:
    """Return what stands in a line: the bar gives way first, then rates and the time that is left; counts never."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
    ]
    if width >= 80:
        columns.append(TextColumn("{task.fields[rates]}", table_column=Column(no_wrap=True)))
    columns.append(TimeElapsedColumn(table_column=Column(no_wrap=True)))
    if width >= 70:
        columns.append(TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)))
    return columns


class _Page:
    """The bars of all stages in a notebook: one piece of HTML, replaced as they move. Needs no widgets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: dict[str, tuple[int, int | None, str]] = {}
        self._shown: Any = None
        self._drawn = float("-inf")

    def __call__(self, stage: str, done: int, total: int | None, rates: dict[str, float]) -> None:
        done = max(done, self._rows[stage][0] if stage in self._rows else 0)
        self._rows[stage] = (done, total, _rates(rates, 80))
        if done == total or self._clock() - self._drawn >= _DRAWN_SECONDS:
            self.show()

    def show(self) -> None:
        """Put what is known now in the place of what was shown."""
        if not self._rows:
            return
        from IPython.display import HTML, display

        page = HTML("<table>" + "".join(self._row(stage) for stage in self._rows) + "</table>")
        if self._shown is None:
            self._shown = display(page, display_id=True)
        else:
            self._shown.update(page)
        self._drawn = self._clock()

    def _row(self, stage: str) -> str:
        done, total, rates = self._rows[stage]
        bar = f'<progress value="{done}" max="{total}"></progress>' if total else ""
        counts = f"{done:,} of {total:,}" if total else f"{done:,}"
        return f"<tr>{_cells([escape(stage), bar, counts, rates])}</tr>"


def _cells(cells: Iterable[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)


class _Line:
    """When a stage has something new to say where there is no terminal."""

    def __init__(self, stage: str, now: float) -> None:
        self._stage = stage
        self._began = self._said = now
        self._share = 0.0

    def due(self, done: int, total: int | None, rates: dict[str, float], now: float) -> str | None:
        share = done / total if total else 0.0
        waited = now - self._said
        if waited < _SECONDS and (share < min(self._share + _SHARE, 1.0) or waited < _QUIET_SECONDS):
            return None
        self._said = now
        self._share = max(self._share, share)
        parts = [f"{self._stage}: {done:,} of {total:,} ({share:.0%})" if total else f"{self._stage}: {done:,}"]
        parts += [_rates(rates, 80)] if rates else []
        parts.append(f"{now - self._began:.0f} s")
        if 0 < share < 1:
            parts.append(f"about {(now - self._began) * (1 - share) / share:.0f} s left")
        return ", ".join(parts)


def _rates(rates: dict[str, float], width: int) -> str:
    """Shorten rates for a line: 12.3k tokens/s; all of them where there is room, else that of tokens or the first."""
    parts = []
    for name, rate in rates.items():
        power = next((p for p in ("G", "M", "k") if rate >= {"G": 1e9, "M": 1e6, "k": 1e3}[p]), "")
        parts.append((name, f"{rate / {'G': 1e9, 'M': 1e6, 'k': 1e3, '': 1}[power]:.1f}{power} {name}/s"))
    if width < 120:
        parts = [part for part in parts if part[0] == "tokens"] or parts[:1]
    return ", ".join(text for _, text in parts)
