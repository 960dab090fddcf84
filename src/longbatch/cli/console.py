"""What all commands share: common options, progress bars or log lines, and how results are printed.

Results go to standard output; progress, log lines and errors go to standard error.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TextIO

import typer

from longbatch.schemas.json_text import as_json as to_json

from .run_record import record_result

if TYPE_CHECKING:
    from rich.progress import TaskID

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output once the new one is complete.")
]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SECONDS_BETWEEN_LOG_LINES = 10.0
MIN_COLUMNS_FOR_NOTES = 140  # a terminal of this width has room for notes next to the bars

logger = logging.getLogger(__name__)


@dataclass
class Display:
    """How the running command shows its progress; set once by `configure_output`."""

    quiet: bool = False


_display = Display()


class ProgressDisplay(Protocol):
    """Receives progress, as `ProgressCallback` does, and optionally a note."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show how much of a stage is done.

        Args:
            stage: The name of the stage.
            done: The amount done.
            total: The amount of the whole stage, in the same unit.
            note: Shown next to the bar, or at the end of the log line.
        """


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which Rich replaces while bars are shown, so that lines appear above them."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def examples(*lines: str) -> str:
    """Return a section of a command's help with one example a line."""
    keep_lines = "\b"  # click's marker for a paragraph that is not rewrapped
    return "\n".join([keep_lines, "Examples:", *(f"  {line}" for line in lines)])


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def configure_output(*, level: LogLevel | None, quiet: bool) -> None:
    """Set up log lines and progress for this process.

    Args:
        level: The least severe level that is logged. Default: WARNING on a terminal, where bars show the progress;
            INFO elsewhere, so that log files show it; ERROR if `quiet`.
        quiet: Show neither bars nor log lines below ERROR.
    """
    default = "ERROR" if quiet else "WARNING" if is_terminal() else "INFO"
    handler = _StandardErrorHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    package = logging.getLogger("longbatch")
    package.handlers = [handler]
    package.setLevel(level or default)
    _display.quiet = quiet


@contextmanager
def show_progress() -> Iterator[ProgressDisplay]:
    """Show the progress of a command: bars on a terminal, log lines elsewhere, nothing with --quiet.

    Yields:
        The callback to pass as `progress`.
    """
    if _display.quiet:
        yield lambda stage, done, total, note="": None
    elif is_terminal():
        with _bars() as show:
            yield show
    else:
        yield ProgressLog()


@contextmanager
def _bars() -> Iterator[ProgressDisplay]:
    """One bar per stage on standard error, with its note where there is room."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description:>14}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    ]
    if console.width >= MIN_COLUMNS_FOR_NOTES:
        columns.append(TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: float, total: float, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield show


class ProgressLog:
    """Logs the progress of each stage: when it ends, and until then at most every ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without stages; `clock` returns seconds."""
        self._clock = clock
        self._idle_since = clock()  # a stage often reports for the first time when it ends
        self._started: dict[str, float] = {}
        self._logged: dict[str, float] = {}
        self._finished: set[str] = set()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Log a line if one is due."""
        now = self._clock()
        started = self._started.setdefault(stage, self._idle_since)
        suffix = f", {note}" if note else ""
        if done >= total:
            if stage not in self._finished:
                self._finished.add(stage)
                self._idle_since = now
                logger.info("%s: done in %.1f s%s", stage, now - started, suffix)
        elif now - self._logged.get(stage, started) >= SECONDS_BETWEEN_LOG_LINES:
            self._finished.discard(stage)
            self._logged[stage] = now
            logger.info("%s: %.0f%% in %.0f s%s", stage, 100 * done / total, now - started, suffix)


def print_result(document: Mapping[str, object], as_json: bool, format_text: Callable[[], str]) -> None:
    """Print a result to standard output: the document as JSON, or the formatted text."""
    record_result(document)
    typer.echo(to_json(dict(document)) if as_json else format_text())
