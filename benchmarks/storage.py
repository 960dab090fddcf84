"""`longbatch bench storage`: what the format saves, against a floor, the other layouts, and what `plan` predicts.

    python -m longbatch.benchmarks.storage floor DATASET OUT     one measured run

The log has histories of about 10,000 events (item, author, topic, time, dwell, click) and 40 requests of 8 targets a user.
The floor is what a good engineer gets from Parquet: every event once, sorted by user and time, times as differences, every
column with or without a dictionary, whichever is smaller; requests with their targets beside it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.jobs.build import build
from longbatch.jobs.savings.capacity_plan import Demand, Volume, project, steady_volume
from longbatch.jobs.savings.parquet_settings import choose_settings, parquet_options
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import Items, load_spec
from longbatch.schemas.types import ProgressCallback

from .checks import Check, Figure, run_process

FULL_EVENTS, QUICK_EVENTS = 20_000_000, 2_000_000
QUICK_BUDGET = "100"  # megabytes of each layout and format; the full run takes the command's own default
EVENTS_PER_USER = 12_000
GROUP_ROWS = 1 << 20
TARGETS_PER_USER = 118  # of the users of the log that is expanded, who have 1,000 events each
FLOOR_LIMIT, EVENT_LIMIT, SHUFFLED_LIMIT, SORTED_LIMIT = 1.10, 11.0, 100.0, 5.0
REQUEST_DECODED_LIMIT, SAMPLE_DECODED_LIMIT = 8.0, 60.0
MEASURE_SECONDS, MEASURE_GB, EXPAND_GB = 180.0, 3.0, 3.0
PREDICTED_WITHIN = 0.10


def bench_storage(
    *, quick: bool = False, folder: Path | None = None, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    """Simulate, build, measure, expand and predict; `folder` keeps the work while it lasts (about 3 GB)."""
    events = QUICK_EVENTS if quick else FULL_EVENTS
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work:
        root = Path(work)
        stages = ("dataset", "floor", "measure", "tenth", "expand")
        found: tuple[list[Check], list[Figure]] = [], [Figure("events of the log", events, "")]
        for number, stage in enumerate(stages):
            progress("stages", number, len(stages))
            checks, figures = STAGES[stage](root, events)
            found[0].extend(checks)
            found[1].extend(figures)
        progress("stages", 1, 1)
    return found


def _make(root: Path, name: str, users: int, events: int) -> Dataset:
    simulate(root / f"{name}-log", Simulation(users=users, events=events, seed=2))
    spec = load_spec(root / f"{name}-log" / "spec.toml")
    build(spec.model_copy(update={"items": Items(features=("author_id", "topic"))}), root / name)
    return open_dataset(root / name)


def _bytes(dataset: Dataset) -> int:
    return sum(entry.size_bytes for shard in dataset.shards for entry in shard.files)


def _dataset(root: Path, events: int) -> tuple[list[Check], list[Figure]]:
    """Build the dataset, and the same without the table of items and without any encoding; all must hold the same."""
    dataset = _make(root, "dataset", events // EVENTS_PER_USER, events)
    hashes, sizes = {_hash(dataset)}, {}
    for name, changes in (
        ("compact, no items", {"items": Items()}),
        ("plain", {"items": Items(), "encoding": "plain"}),
    ):
        build(dataset.spec.model_copy(update=changes), root / "other", overwrite=True)
        other = open_dataset(root / "other")
        hashes.add(_hash(other))
        sizes[name] = _bytes(other) / other.counts.stored
    shutil.rmtree(root / "other")
    figures = [
        Figure("requests", dataset.counts.requests, ""),
        Figure("targets", dataset.counts.targets, ""),
        Figure("stored events", dataset.counts.stored, ""),
        Figure("mean history", dataset.counts.history_events / dataset.counts.requests, "events"),
        *(Figure(f"bytes per stored event, {name}", value, "B") for name, value in sizes.items()),
    ]
    per_event = _bytes(dataset) / dataset.counts.stored
    return [
        Check("bytes per stored event, requests and targets included", per_event, EVENT_LIMIT),
        Check("different contents of three encodings", float(len(hashes)), 1.0, "=="),
    ], figures


def _hash(dataset: Dataset) -> str:
    return content_hash(dataset.blocks(), dataset.spec.history_length)


def _floor(root: Path, events: int) -> tuple[list[Check], list[Figure]]:
    run_process("longbatch.benchmarks.storage", "floor", str(root / "dataset"), str(root / "floor"))
    size = sum(path.stat().st_size for path in (root / "floor").iterdir())
    dataset = open_dataset(root / "dataset")
    return [Check("dataset / floor, Parquet zstd, bytes", _bytes(dataset) / size, FLOOR_LIMIT)], [
        Figure("bytes per stored event, floor", size / dataset.counts.stored, "B")
    ]


def write_floor(dataset: Dataset, out: Path) -> None:
    """The same rows as two Parquet files, as small as plain Parquet gets them."""
    out.mkdir(parents=True)
    blocks = list(dataset.blocks())
    timelines = pa.Table.from_batches([block.timelines for block in blocks])
    requests = pa.Table.from_batches([block.requests for block in blocks]).drop_columns(["segment", "timeline_row"])
    users = np.repeat(timelines["user_id"].to_numpy(), timelines["events"].combine_chunks().value_lengths().to_numpy())
    events = timelines["events"].combine_chunks().flatten()
    columns = dict(zip(events.type.names, events.flatten(), strict=True))
    milliseconds = columns["event_time"].cast(pa.int64()).to_numpy() // 1000
    steps = np.diff(milliseconds, prepend=milliseconds[:1])
    first = np.append(True, users[1:] != users[:-1])
    steps[first] = milliseconds[first]
    flat = pa.table({"user_id": users, **columns, "event_time": steps})
    for name, table in (("events", flat), ("requests", requests)):
        settings = choose_settings([table.slice(0, 3 * GROUP_ROWS)], "zstd")
        options = parquet_options(table.schema, "zstd", settings)
        pq.write_table(table, out / f"{name}.parquet", row_group_size=GROUP_ROWS, **options)


def _measure(root: Path, events: int) -> tuple[list[Check], list[Figure]]:
    """The command as people run it, in a process of its own."""
    run = run_process("longbatch.cli.main", "measure", str(root / "dataset"), str(root / "savings"), *_budget(events))
    savings = _savings(root / "savings")
    headline, layouts = savings["headline"], {layout["name"]: layout for layout in savings["layouts"]}
    mine = savings["on_disk"]["decoded_bytes"]
    decoded = {level: layouts[f"{level}_level_by_log"]["decoded_bytes"] / mine for level in ("sample", "request")}
    return [
        Check("sample level shuffled / ours, Parquet zstd, bytes", headline["shuffled"], SHUFFLED_LIMIT, ">="),
        Check(
            "sample level sorted by user / ours, Parquet zstd, bytes", headline["sorted_by_user"], SORTED_LIMIT, ">="
        ),
        Check("request level / ours, decoded bytes per target", decoded["request"], REQUEST_DECODED_LIMIT, ">="),
        Check("sample level / ours, decoded bytes per target", decoded["sample"], SAMPLE_DECODED_LIMIT, ">="),
        Check("measure: wall time (s)", run.seconds, MEASURE_SECONDS),
        Check("measure: peak memory (GB)", run.peak_bytes / 1e9, MEASURE_GB),
    ], [
        Figure("sample level, log order, request by request / ours", headline["log_order"], "x"),
        Figure(f"smallest other: {headline['smallest_title']} / ours", headline["smallest"], "x"),
    ]


def _budget(events: int) -> list[str]:
    return [] if events >= FULL_EVENTS else ["--budget", QUICK_BUDGET]


def _savings(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "savings.json").read_bytes())
    return document


def _tenth(root: Path, events: int) -> tuple[list[Check], list[Figure]]:
    """Measure a log of a tenth of the users, and compare what its rates predict for all of them with what was measured."""
    small = _make(root, "tenth", events // EVENTS_PER_USER // 10, events // 10)
    run_process("longbatch.cli.main", "measure", str(root / "tenth"), str(root / "tenth-savings"), *_budget(events))
    shutil.rmtree(root / "tenth-log")
    whole, counts = _savings(root / "savings"), open_dataset(root / "dataset").counts
    volume = Volume(counts.users, counts.requests, counts.targets, counts.stored, counts.history_events)
    predicted = project(_savings(root / "tenth-savings"), volume, Demand())
    pairs = {"dataset": (predicted["layouts"][-1]["bytes"], whole["on_disk"]["bytes"])}
    pairs["dataset, decoded"] = predicted["layouts"][-1]["decoded_bytes"], whole["on_disk"]["decoded_bytes"]
    rates = whole["rates"]
    pairs["shuffle"] = predicted["build"]["shuffle_bytes"], rates["log_rows"] * rates["row_shuffle_bytes"]
    # few users' histories meet in a page by chance, so these hold for many only: not in the quick run
    layouts = {layout["name"]: layout for layout in whole["layouts"]} if events >= FULL_EVENTS else {}
    for layout in (guess for guess in predicted["layouts"] if guess["name"] in layouts):
        file = next(f for f in layouts[layout["name"]]["files"] if (f["format"], f["codec"]) == ("Parquet", "zstd"))
        pairs[layout["title"]] = layout["bytes"], file["bytes"]
    return [
        Check(f"predicted from a tenth, off by: {name}", abs(guess / truth - 1), PREDICTED_WITHIN)
        for name, (guess, truth) in pairs.items()
    ], [Figure("users of the tenth", small.counts.users, ""), *_steady(root)]


def _steady(root: Path) -> list[Figure]:
    """How far the volume that `plan` makes of means, as people give them, is from the one that is there."""
    dataset = open_dataset(root / "dataset")
    counts, (first, last) = dataset.counts, _span_us(dataset)
    days = (last - first) / 86_400e6
    within = sum(_count_from(block.timelines["events"], first) for block in dataset.blocks())
    found = steady_volume(
        users=counts.users,
        requests_per_user_day=counts.requests / counts.users / days,
        targets=counts.targets / counts.requests,
        length=counts.history_events / counts.requests,
        days=days,
        events_per_user_day=within / counts.users / days,
    )
    return [Figure("stored events, by plan's formula from means / there", found.stored_events / counts.stored, "x")]


def _span_us(dataset: Dataset) -> tuple[int, int]:
    """The times of the first and the last request, in microseconds."""
    times = [(shard.first_request_time, shard.last_request_time) for shard in dataset.shards]
    ends = min(first for first, _ in times), max(last for _, last in times)
    first, last = (int(end.timestamp() * 1e6) for end in ends)
    return first, last


def _count_from(events: pa.ListArray, moment_us: int) -> int:
    times = events.flatten().field("event_time").cast(pa.int64()).to_numpy()
    return int((times >= moment_us).sum())


def _expand(root: Path, events: int) -> tuple[list[Check], list[Figure]]:
    """Expand 2M targets (50K if quick) at the built length, and prove that nothing was lost."""
    users = (events // 10 if events >= FULL_EVENTS else events // 40) // TARGETS_PER_USER
    for name in ("dataset", "dataset-log", "floor"):
        shutil.rmtree(root / name)
    many = _make(root, "many", users, 1_000 * users)
    run = run_process(
        "longbatch.cli.main", "expand", str(root / "many"), str(root / "samples"), "--overwrite", "--check"
    )
    size = sum(path.stat().st_size for path in (root / "samples").iterdir())
    return [Check("expand --check: peak memory (GB)", run.peak_bytes / 1e9, EXPAND_GB)], [
        Figure("expand --check: targets, each with its history, equal", many.counts.targets, ""),
        Figure("expand --check: wall time", run.seconds, "s"),
        Figure("expand --check: Parquet / dataset, bytes", size / _bytes(many), "x"),
    ]


STAGES = {"dataset": _dataset, "floor": _floor, "measure": _measure, "tenth": _tenth, "expand": _expand}


def main() -> None:
    """One measured run, in a process of its own."""
    write_floor(open_dataset(sys.argv[2]), Path(sys.argv[3]))


if __name__ == "__main__":
    main()
