"""The commands that make a dataset, and say what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from longbatch.schemas.errors import SpecError

from .console import Json, Overwrite, progress_bars, show

if TYPE_CHECKING:
    from longbatch.jobs.build import Engine
    from longbatch.schemas.spec.build_spec import BuildSpec

app = typer.Typer()

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
    until: Annotated[
        str | None, typer.Option(help="Build what was known before this time, so that days can be appended.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Build a dataset from raw logs: per-user timelines stored once, targets grouped per request."""
    from longbatch.jobs.engines.allocator import keep_freed_memory

    keep_freed_memory()
    from longbatch.jobs.build import build as run
    from longbatch.pipelines.parse import parse_moment

    from .text_output import build_text

    chosen = _engine(engine, master, workers)
    meant, out = spec_and_out(spec, folders)
    moment = parse_moment(until) if until else None
    with progress_bars() as progress:
        summary = run(meant, out, engine=chosen, overwrite=overwrite, until=moment, progress=progress)
    show(summary.as_dict(), as_json, lambda: build_text(summary))


def spec_and_out(spec: str, folders: list[Path]) -> tuple[BuildSpec, Path]:
    """What to build, and where to: SPEC OUT, or preset:NAME RAW OUT."""
    from longbatch.jobs.presets import PREFIX, load_preset
    from longbatch.schemas.spec.build_spec import load_spec

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
    from longbatch.jobs.presets import describe_preset, preset_names, preset_toml

    if name is not None:
        text = preset_toml(name)
        show({"name": name, "spec": text}, as_json, lambda: text.rstrip("\n"))
        return
    about = {known: describe_preset(known) for known in preset_names()}
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
    from longbatch.jobs.inspect import describe, describe_user
    from longbatch.schemas.format.dataset import open_dataset

    from .text_output import dataset_text, user_text

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
    corrupt: Annotated[float, typer.Option(min=0, max=0.2, help="Broken rows to add, as a share.")] = 0.0,
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
    from longbatch.jobs.simulation.simulate import Simulation
    from longbatch.jobs.simulation.simulate import simulate as run

    from .text_output import simulation_text

    parameters = Simulation(users=users, events=events, seed=seed, corrupt=corrupt, format=format)
    with progress_bars() as progress:
        report = run(out, parameters, progress, overwrite=overwrite)
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
    from longbatch.jobs.validate import validate as run
    from longbatch.schemas.spec.build_spec import load_spec

    from .text_output import validation_text

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
def append(
    spec: Annotated[Path, typer.Argument(help="The spec; its sources may name the new day's files only.")],
    dataset: Annotated[Path, typer.Argument(help="A dataset that was built with --until.")],
    until: Annotated[str, typer.Option(help="Append what was known before this time (ISO, UTC without an offset).")],
    engine: Annotated[Literal["local", "spark"], typer.Option(help="Where to run.")] = "local",
    master: Annotated[str | None, typer.Option(help="Spark master, such as local[4] or spark://host:7077.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads of the local engine; default: cores.")] = None,
    as_json: Json = False,
) -> None:
    """Append the days since a dataset's newest snapshot, without reading the past again.

    Rows of other times in the sources are not looked at. Appending a day twice changes nothing.

    \b
    Examples:
      longbatch build spec.toml dataset --until 2026-03-01
      longbatch append spec.toml dataset --until 2026-03-02
    """
    from longbatch.jobs.engines.allocator import keep_freed_memory

    keep_freed_memory()
    from longbatch.jobs.append import append as run
    from longbatch.pipelines.parse import parse_moment
    from longbatch.schemas.spec.build_spec import load_spec

    from .text_output import build_text

    with progress_bars() as progress:
        summary = run(
            load_spec(spec), dataset, parse_moment(until), engine=_engine(engine, master, workers), progress=progress
        )
    show(summary.as_dict(), as_json, lambda: build_text(summary))


def _engine(engine: str, master: str | None, workers: int | None) -> Engine:
    from longbatch.jobs.engines.local import LocalEngine
    from longbatch.jobs.engines.spark import SparkEngine

    if master and engine == "local":
        raise SpecError("--master is for --engine spark")
    return SparkEngine(master) if engine == "spark" else LocalEngine(workers)


@app.command()
def vacuum(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest snapshots stay.")] = 1,
    as_json: Json = False,
) -> None:
    """Remove older snapshots, and files that no snapshot lists and no running build writes.

    \b
    Example:
      longbatch vacuum dataset --keep 3
    """
    from longbatch.jobs.vacuum import vacuum as run

    done = run(dataset, keep)
    show(
        done.as_dict(),
        as_json,
        lambda: f"removed {len(done.snapshots)} snapshots and {done.files} files ({done.bytes:,} bytes)",
    )


@app.command()
def forget(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    users: Annotated[Path, typer.Option(help="A file of users, one a line, as the log calls them.")],
    as_json: Json = False,
) -> None:
    """Remove users everywhere: shards, state, samples, quarantine, vocabulary. Then `vacuum` removes the old files.

    \b
    Example:
      longbatch forget dataset --users users.txt && longbatch vacuum dataset
    """
    from longbatch.jobs.forget import forget as run
    from longbatch.jobs.forget import read_users

    done = run(dataset, read_users(users))
    show(
        done.as_dict(),
        as_json,
        lambda: (
            f"forgot {done.users:,} users ({done.users_with_requests:,} had requests): {done.rewritten_shards} of "
            f"{done.shards} shards and {done.rewritten_files} other files written anew in snapshot {done.snapshot}; "
            f"nothing of them is in it. Older files hold them until `longbatch vacuum {dataset}`"
        ),
    )
