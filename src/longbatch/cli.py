"""The commands. This file only gathers them: each imports what it needs when it is called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from longbatch.schemas.errors import LongbatchError, SpecError

app = typer.Typer(
    name="longbatch",
    help="Request-level batches over 10,000-event user histories.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, after success only.")]

BUILD_EXAMPLES = """\b
Examples:
  longbatch build log/spec.toml dataset
  longbatch build spec.toml dataset --overwrite --engine spark --master 'local[4]'
  spark-submit jobs/build.py spec.toml dataset

\b
A spec for one log that feeds both history and targets:
  [sources.log]
  path = "log/*.parquet"             # also CSV/TSV (.gz), JSON lines, Arrow IPC; globs, lists, URIs
  [history]
  source = "log"
  where = "dwell_ms > 0"             # Polars SQL
  user_id = "user_id"
  item_id = "item_id"
  event_time = { column = "event_time", unit = "ms" }
  arrival_time = { column = "arrival_time", unit = "ms" }
  request_id = "request_id"
  features = { author_id = "int32", dwell_ms = "int32" }
  [requests]
  source = "log"
  where = "request_time >= 1700000000000"
  user_id = "user_id"
  item_id = "item_id"
  request_time = { column = "request_time", unit = "ms" }
  request_id = "request_id"
  target_features = { author_id = "int32" }
  labels = { click = "int8" }

\b
A spec for separate logs, string ids, requests known by user and time only:
  [sources.plays]
  path = "plays.tsv.gz"
  [sources.shown]
  path = ["shown/*.jsonl"]
  [history]
  source = "plays"
  user_id = { column = "uid", type = "string" }
  item_id = { column = "track", type = "string" }
  event_time = { column = "played_at", unit = "s" }
  delay = "5s"
  [requests]
  source = "shown"
  user_id = { column = "uid", type = "string" }
  item_id = { column = "track", type = "string" }
  request_time = { column = "at", unit = "iso" }
  labels = { liked = "bool" }

\b
A spec for in-view and clicked lists, and a history of lists (EB-NeRD):
  [sources.behaviors]
  path = "behaviors.parquet"
  explode = { lists = "article_ids_inview" }
  [sources.history]
  path = "history.parquet"
  explode = { lists = ["article_id_fixed", "impression_time_fixed"] }
  [history]
  source = "history"
  user_id = "user_id"
  item_id = "article_id_fixed"
  event_time = "impression_time_fixed"
  [requests]
  source = "behaviors"
  user_id = "user_id"
  item_id = "article_ids_inview"
  request_time = "impression_time"
  request_id = "impression_id"
  labels = { click = { contained_in = "article_ids_clicked" } }

\b
docs/spec.md explains every key and has more examples.
"""


@contextmanager
def progress_bars(enabled: bool = True) -> Iterator[Callable[[str, float, float], None]]:
    """Progress bars on standard error, one per stage, for callbacks (stage, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:>14}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not enabled) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: float, total: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def show(document: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Print a result for machines or for people."""
    typer.echo(json.dumps(document, indent=1, default=str) if as_json else text())


@app.command(epilog=BUILD_EXAMPLES)
def build(
    spec: Annotated[Path, typer.Argument(help="The build spec (TOML).")],
    out: Annotated[Path, typer.Argument(help="The dataset to write.")],
    engine: Annotated[Literal["local", "spark"], typer.Option(help="Where to run.")] = "local",
    master: Annotated[str | None, typer.Option(help="Spark master, such as local[4] or spark://host:7077.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads of the local engine; default: cores.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Build a dataset from raw logs: per-user timelines stored once, targets grouped per request."""
    from longbatch.jobs.build import build as run
    from longbatch.jobs.local import LocalEngine
    from longbatch.jobs.spark import SparkEngine
    from longbatch.jobs.summary import build_text
    from longbatch.schemas.spec import load_spec

    if master and engine == "local":
        raise SpecError("--master is for --engine spark")
    chosen = SparkEngine(master) if engine == "spark" else LocalEngine(workers)
    with progress_bars() as progress:
        summary = run(load_spec(spec), out, engine=chosen, overwrite=overwrite, progress=progress)
    show(summary.as_dict(), as_json, lambda: build_text(summary))


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    user: Annotated[str | None, typer.Option(help="Show one request of this user.")] = None,
    request: Annotated[int, typer.Option(help="Which of the user's requests; -1 is the last.")] = -1,
    content_hash: Annotated[bool, typer.Option("--content-hash", help="Also hash all content (reads it all).")] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a dataset, or one request of a user as people read it."""
    from longbatch.jobs.inspect import describe, describe_user
    from longbatch.jobs.summary import dataset_text, user_text
    from longbatch.schemas.dataset import open_dataset

    opened = open_dataset(dataset)
    if user is not None:
        shown = describe_user(opened, user, request)
        show(shown, as_json, lambda: user_text(shown))
        return
    described = describe(opened, hash_content=content_hash)
    show(described, as_json, lambda: dataset_text(described))


def main() -> None:
    """Run the command line; errors become one line on standard error and the error's exit code."""
    try:
        app(standalone_mode=False)
    except LongbatchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing was committed", err=True)
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        sys.exit(2)


if __name__ == "__main__":
    main()
