"""Progress and log lines: bars on a terminal, log lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr

import pytest

from longbatch.cli import console
from longbatch.cli.console import ProgressLog, configure_output, examples, print_result, show_progress


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what `configure_output` changes."""
    package = logging.getLogger("longbatch")
    handlers, level = package.handlers, package.level
    yield
    package.handlers = handlers
    package.setLevel(level)
    console._display.quiet = False


def shown_on_terminal(show: Callable[[], None]) -> str:
    """What a function writes to standard error if it is a terminal."""
    with redirect_stderr(Terminal()) as stream:
        show()
    return stream.getvalue()


def level() -> int:
    return logging.getLogger("longbatch").level


def test_the_default_level_is_warning_on_a_terminal() -> None:
    shown_on_terminal(lambda: configure_output(level=None, quiet=False))
    assert level() == logging.WARNING


def test_the_default_level_is_info_elsewhere_and_error_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    configure_output(level=None, quiet=False)
    assert level() == logging.INFO
    configure_output(level=None, quiet=True)
    assert level() == logging.ERROR


def test_a_given_level_wins(capsys: pytest.CaptureFixture[str]) -> None:
    configure_output(level="DEBUG", quiet=True)
    assert level() == logging.DEBUG


def test_a_log_line_has_time_level_logger_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_output(level="INFO", quiet=False)
    logging.getLogger("longbatch.jobs.build").info("read %d rows", 7)
    assert capsys.readouterr().err.rstrip().endswith(" INFO longbatch.jobs.build: read 7 rows")


def test_configuring_twice_logs_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        configure_output(level="INFO", quiet=False)
    logging.getLogger("longbatch").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_a_terminal_shows_a_bar_per_stage() -> None:
    def show() -> None:
        configure_output(level=None, quiet=False)
        with show_progress() as progress:
            progress("read", 1, 2)
            progress("write", 2, 2)

    shown = shown_on_terminal(show)
    assert "read" in shown
    assert "50%" in shown
    assert "write" in shown
    assert "100%" in shown


def test_log_lines_appear_above_the_bars() -> None:
    def show() -> None:
        configure_output(level="INFO", quiet=False)
        with show_progress() as progress:
            progress("read", 1, 2)
            logging.getLogger("longbatch").info("a line")

    _, line, below = shown_on_terminal(show).partition(" INFO longbatch: a line")
    assert line
    assert "50%" in below


def test_quiet_shows_nothing() -> None:
    def show() -> None:
        configure_output(level=None, quiet=True)
        with show_progress() as progress:
            progress("read", 1, 2)
            progress("read", 2, 2, "note")

    assert shown_on_terminal(show) == ""


def test_a_stage_is_logged_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    configure_output(level=None, quiet=False)
    with show_progress() as progress:
        progress("read", 1, 2)
        progress("read", 2, 2)
        progress("read", 2, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r" INFO longbatch\.cli\.console: read: done in \d+\.\d s$", line)


def test_a_long_stage_is_logged_every_ten_seconds_with_its_note(caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter([0.0, 0.0, 4.0, 12.0, 15.0, 23.0, 30.0])
    log = ProgressLog(clock=lambda: next(seconds))
    with caplog.at_level(logging.INFO, logger="longbatch"):
        for done in range(6):
            log("train", done, 5, "loss 0.5")
    assert caplog.messages == [
        "train: 40% in 12 s, loss 0.5",
        "train: 80% in 23 s, loss 0.5",
        "train: done in 30.0 s, loss 0.5",
    ]


def test_a_stage_starts_when_the_previous_stage_ends(caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter([0.0, 4.0, 6.5])
    log = ProgressLog(clock=lambda: next(seconds))
    with caplog.at_level(logging.INFO, logger="longbatch"):
        log("scan", 2, 2)
        log("shards", 1, 1)
    assert caplog.messages == ["scan: done in 4.0 s", "shards: done in 2.5 s"]


def test_a_stage_without_work_is_done(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="longbatch"):
        ProgressLog(clock=lambda: 0.0)("compare", 0, 0)
    assert caplog.messages == ["compare: done in 0.0 s"]


def test_a_result_is_printed_as_text_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_result({"rows": 3}, False, lambda: "3 rows")
    print_result({"rows": 3}, True, lambda: "3 rows")
    assert capsys.readouterr().out == '3 rows\n{\n "rows": 3\n}\n'


def test_examples_keep_their_lines() -> None:
    assert examples("longbatch presets", "longbatch demo") == "\b\nExamples:\n  longbatch presets\n  longbatch demo"
