"""How far a long call is: bars on standard error. Knows stages by name. Does not know what they do."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """Progress bars on standard error, with rates where a build report has them; nothing where that is no terminal."""

    def __init__(self, report: Any = None) -> None:
        self.console = Console(stderr=True)
        self._report = report
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show how far a stage is: a `config.Progress`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, rates="")
        held = None if self._report is None else self._report.stages.get(stage)
        rates = "" if held is None else _rates(held.rates)
        self._progress.update(self._tasks[stage], completed=done, total=total, rates=rates)

    def tell(self, sentence: str) -> None:
        """Say something on standard error, terminal or not."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _rates(rates: dict[str, float]) -> str:
    """Shorten rates for a line: 12.3k tokens/s."""
    parts = []
    for name, rate in rates.items():
        power = next((p for p in ("G", "M", "k") if rate >= {"G": 1e9, "M": 1e6, "k": 1e3}[p]), "")
        parts.append(f"{rate / {'G': 1e9, 'M': 1e6, 'k': 1e3, '': 1}[power]:.1f}{power} {name}/s")
    return ", ".join(parts)
