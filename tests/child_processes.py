"""Child processes of tests: Ctrl-C reaches them however the tests were started, and none outlives its test."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HANG_SECONDS = 600


@contextmanager
def child_process(
    command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command while the block runs, and kill it at the end of the block or after HANG_SECONDS.

    A shell starts background jobs with SIGINT ignored, and children inherit that: Python then installs no handler, and
    Ctrl-C is lost. The child starts with the default handling of SIGINT, whatever the tests inherited.

    Args:
        command: Program and arguments.
        cwd: Working directory. Default: that of the tests.
        environment: Environment variables. Default: those of the tests.

    Yields:
        The process, with pipes for its standard output and its standard error.
    """
    # A signal that has a handler gets its default handling in the new program; an ignored one stays ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, inherited)
    # A timer ends every wait for the process, reading a line of its output included.
    watchdog = threading.Timer(HANG_SECONDS, process.kill)
    watchdog.start()
    with process:
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()
