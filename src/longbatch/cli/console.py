"""What all commands share: how they show progress and results, and the options that mean the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import typer

from longbatch.schemas import json_text as documents

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, after success only.")]

WIDE = 140  # characters of a terminal that has room for notes beside the bars


class Bars(Protocol):
    """What `progress_bars` yields."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """So much of a stage is done; the note is shown beside its bar."""


@contextmanager
def progress_bars(enabled: bool = True) -> Iterator[Bars]:
    """Progress bars on standard error, one per stage, for callbacks (stage, done, total) that may have a note, shown if there is room."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description:>14}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    ]
    if console.width >= WIDE:
        columns.append(TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, disable=not enabled) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: float, total: float, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield advance


def show(document: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print a result for machines or for people."""
    typer.echo(documents.as_json(document) if as_json else text())
