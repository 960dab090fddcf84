"""The commands that write datasets: build, append, forget, vacuum; and the logs to try them on: simulate, presets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from longbatch.schemas.errors import SpecError

from .console import Json, Overwrite, examples, print_result, show_progress
from .run_record import describe_run

if TYPE_CHECKING:
    from longbatch.jobs.engines.engine import Engine
    from longbatch.schemas.spec.build_spec import BuildSpec

app = typer.Typer()

EngineName = Annotated[
    Literal["local", "spark"] | None,
    typer.Option("--engine", help="Where to run. Default: spark under spark-submit, else local.", show_default=False),
]
Master = Annotated[
    str | None, typer.Option(help="The Spark master, such as local[4] or spark://host:7077. Needs --engine spark.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads of the local engine. Default: one per core.")]

BUILD_EXAMPLES = """\b
Examples:
  longbatch build log/spec.toml dataset
  longbatch build spec.toml dataset --overwrite --engine spark --master 'local[4]'
  longbatch build preset:kuairand-1k KuaiRand-1K dataset   # `longbatch presets` lists the public datasets
  spark-submit src/longbatch/__main__.py build spec.toml dataset

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
A spec for separate logs with string ids, where user and time identify a request:
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
    spec: Annotated[
        str, typer.Argument(help="Path or URL of the build spec (TOML), or preset:NAME for a public dataset.")
    ],
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="[RAW] OUT",
            help="OUT: folder or URL of the dataset to write. RAW: the folder of the raw files, for a preset only.",
        ),
    ],
    engine: EngineName = None,
    master: Master = None,
    workers: Workers = None,
    until: Annotated[
        str | None,
        typer.Option(help="Build only what was known before this time (ISO), so that later days can be appended."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Build a dataset from raw logs: per-user timelines stored once, targets grouped by request."""
    from longbatch.jobs.engines.allocator import keep_freed_memory

    keep_freed_memory()
    from longbatch.api.data import build as run

    from .text_output import format_build_summary

    build_spec, out = parse_spec_and_out(spec, folders)
    describe_run(spec=build_spec, writes=out)
    chosen_engine = choose_engine(engine, master, workers)
    with show_progress() as progress:
        summary = run(build_spec, out, engine=chosen_engine, overwrite=overwrite, until=until, progress=progress)
    print_result(summary.as_dict(), as_json, lambda: format_build_summary(summary))


def parse_spec_and_out(spec: str, folders: list[str]) -> tuple[BuildSpec, str]:
    """Read the arguments of `build`: SPEC OUT, or preset:NAME RAW OUT.

    Raises:
        SpecError: There are too few or too many folders, or the spec is invalid.
    """
    from longbatch.jobs.presets import PREFIX, load_preset
    from longbatch.schemas.spec.build_spec import load_spec

    usage = "preset:NAME RAW OUT" if spec.startswith(PREFIX) else "SPEC OUT"
    if len(folders) != len(usage.split()) - 1:
        raise SpecError(f"usage: longbatch build {usage}; found {' '.join([spec, *folders])}")
    if spec.startswith(PREFIX):
        return load_preset(spec.removeprefix(PREFIX), Path(folders[0])), folders[1]
    return load_spec(spec), folders[0]


def choose_engine(engine: Literal["local", "spark"] | None, master: str | None, workers: int | None) -> Engine:
    """Return the engine of the options. Under spark-submit, which sets PYSPARK_GATEWAY_PORT, the default is Spark.

    Raises:
        SpecError: `--master` was given for the local engine.
    """
    from longbatch.api.arguments import make_engine

    chosen = engine or ("spark" if "PYSPARK_GATEWAY_PORT" in os.environ else "local")
    if master and chosen == "local":
        raise SpecError("--master needs --engine spark")
    return make_engine(chosen, workers=workers, master=master)


@app.command(
    epilog=examples(
        "longbatch build spec.toml dataset --until 2026-03-01",
        "longbatch append spec.toml dataset --until 2026-03-02",
        "longbatch --metrics metrics.json append spec.toml dataset --until 2026-03-03   # docs/operations.md",
    )
)
def append(
    spec: Annotated[
        str,
        typer.Argument(help="Path or URL of the spec. Its sources may name only the files of the new days."),
    ],
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset that was built with --until.")],
    until: Annotated[str, typer.Option(help="Append what was known before this time (ISO; UTC if it has no offset).")],
    engine: EngineName = None,
    master: Master = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Append new days to a dataset without reading older logs again.

    Rows from before the newest snapshot and from after --until are ignored. Appending a day twice changes nothing.
    """
    from longbatch.jobs.engines.allocator import keep_freed_memory

    keep_freed_memory()
    from longbatch.api.arguments import read_spec
    from longbatch.api.data import append as run

    from .text_output import format_build_summary

    build_spec = read_spec(spec)
    describe_run(spec=build_spec, writes=dataset)
    chosen_engine = choose_engine(engine, master, workers)
    with show_progress() as progress:
        summary = run(build_spec, dataset, until=until, engine=chosen_engine, progress=progress)
    print_result(summary.as_dict(), as_json, lambda: format_build_summary(summary))


@app.command(
    epilog=examples(
        "longbatch forget dataset --users users.txt && longbatch vacuum dataset",
    )
)
def forget(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    users: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Path or URL of a text file with one user a line, as the raw logs name them."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Remove users from a dataset: shards, incremental state, samples, quarantine and vocabulary.

    Files of older snapshots still contain the users until `longbatch vacuum` removes these files.
    """
    from longbatch.api.data import forget as run
    from longbatch.jobs.forget import read_users

    from .text_output import format_forget_summary

    describe_run(writes=dataset)
    summary = run(dataset, read_users(users))
    print_result(summary.as_dict(), as_json, lambda: format_forget_summary(summary))


@app.command(
    epilog=examples(
        "longbatch vacuum dataset --keep 3",
    )
)
def vacuum(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest snapshots to keep.")] = 1,
    as_json: Json = False,
) -> None:
    """Remove older snapshots, and files that no snapshot lists and no running build writes."""
    from longbatch.api.data import vacuum as run

    from .text_output import format_vacuum_summary

    describe_run(writes=dataset)
    summary = run(dataset, keep=keep)
    print_result(summary.as_dict(), as_json, lambda: format_vacuum_summary(summary))


@app.command(
    epilog=examples(
        "longbatch presets",
        "longbatch build preset:movielens ml-32m dataset",
        "longbatch presets movielens > ml-32m/spec.toml      # to edit it; its paths are relative to its own folder",
        "longbatch build ml-32m/spec.toml dataset",
    )
)
def presets(
    name: Annotated[str | None, typer.Argument(help="Print the spec of this preset.")] = None,
    as_json: Json = False,
) -> None:
    """List the public datasets that `longbatch build preset:NAME RAW OUT` can build, or print the spec of one."""
    from longbatch.jobs.presets import describe_preset, preset_names, preset_toml

    from .text_output import format_presets

    if name is not None:
        toml = preset_toml(name)
        print_result({"name": name, "spec": toml}, as_json, lambda: toml.rstrip("\n"))
        return
    descriptions = {known: describe_preset(known) for known in preset_names()}
    print_result({"presets": descriptions}, as_json, lambda: format_presets(descriptions))


@app.command(
    epilog=examples(
        "longbatch simulate raw --users 1000 --events 4000000",
        "longbatch simulate raw --corrupt 0.02 --format csv --overwrite",
        "longbatch build raw/spec.toml dataset",
    )
)
def simulate(
    out: Annotated[Path, typer.Argument(help="The folder to write: log, spec.toml and ground truth.")],
    users: Annotated[int, typer.Option(min=1, help="Users of the log.")] = 1_000,
    events: Annotated[int, typer.Option(min=1, help="Rows of the log, without corrupt ones.")] = 4_000_000,
    seed: Annotated[int, typer.Option(min=0, help="The same options and seed give the same log.")] = 0,
    corrupt: Annotated[
        float, typer.Option(min=0, max=0.2, metavar="SHARE", help="Corrupt rows to add, as a share of the rows.")
    ] = 0.0,
    format: Annotated[Literal["parquet", "csv"], typer.Option(help="The file format of the log.")] = "parquet",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a raw log with a planted signal, the spec that builds it, and its ground truth."""
    from longbatch.api.storage import simulate as run

    from .text_output import format_simulation

    with show_progress() as progress:
        report = run(
            out,
            users=users,
            events=events,
            seed=seed,
            corrupt=corrupt,
            format=format,
            overwrite=overwrite,
            progress=progress,
        )
    print_result(vars(report), as_json, lambda: format_simulation(report))
