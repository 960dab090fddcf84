"""The command line in this process: as quick as a function call, with the output and the exit code of a new process."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from longbatch.cli import console
from longbatch.cli.main import main


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `longbatch` with these arguments, and undo what it sets for the process: logging and quietness."""
    package, quiet = logging.getLogger("longbatch"), console._display.quiet
    handlers, level = package.handlers, package.level
    command = ["longbatch", *arguments]
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    try:
        with (
            patch.object(sys, "argv", command),
            patch.dict("os.environ", {"COLUMNS": "80"}),
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        package.handlers = handlers
        package.setLevel(level)
        console._display.quiet = quiet
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())
