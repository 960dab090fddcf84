"""`longbatch bench storage`: the size of the format, compared with a baseline, other layouts, and what `plan` predicts.

    python -m longbatch.benchmarks.storage DATASET OUT     one measured run of the baseline

The log has histories of about 10,000 events (item, author, topic, time, dwell, click) and 40 requests of 8 targets per
user. The baseline is what a good engineer gets from Parquet: every event once, sorted by user and time, times as
differences, every column with or without a dictionary, whichever is smaller, and requests with their targets.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.jobs.build import build
from longbatch.jobs.savings.capacity_plan import Demand, Volume, plan_capacity, steady_volume
from longbatch.jobs.savings.parquet_settings import choose_settings, parquet_options
from longbatch.jobs.savings.results import read_savings
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.format.manifest import SHARD_TABLES
from longbatch.schemas.spec.build_spec import Items, load_spec
from longbatch.schemas.types import ArrowListArray, ProgressCallback

from .checks import WORK_PREFIX, Check, Figure, Results, combined, hash_of
from .processes import run_longbatch, run_module

FULL_EVENTS, QUICK_EVENTS = 20_000_000, 2_000_000
QUICK_BUDGET = "100"  # megabytes of each layout and format; the full run takes the command's own default
EVENTS_PER_USER = 12_000
GROUP_ROWS = 1 << 20
TARGETS_PER_USER = 118  # of the users of the log that is expanded, who have 1,000 events each
BASELINE_LIMIT, EVENT_LIMIT, SHUFFLED_LIMIT, SORTED_LIMIT = 1.10, 11.0, 100.0, 5.0
REQUEST_MEMORY_LIMIT, SAMPLE_MEMORY_LIMIT = 8.0, 60.0
MEASURE_SECONDS, MEASURE_GB, EXPAND_GB = 180.0, 3.0, 3.0
PREDICTED_WITHIN = 0.10
DAY_MICROSECONDS = 86_400_000_000


def bench_storage(*, quick: bool = False, folder: Path | None = None, progress: ProgressCallback) -> Results:
    """Simulate, build, measure, expand and predict.

    Args:
        quick: Use a smaller log.
        folder: Where the work folder is created; the work takes about 3 GB.
        progress: Called before each stage.

    Returns:
        Sizes relative to the baseline and other layouts, and errors of predictions.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    results = [Results([], [Figure("events of the log", events)])]
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work:
        for number, stage in enumerate(STAGES):
            progress("stages", number, len(STAGES))
            results.append(stage(Path(work), events))
        progress("stages", 1, 1)
    return combined(results)


def _build(root: Path, name: str, users: int, events: int) -> Dataset:
    """Simulate a log and build it, with a table of item features."""
    simulate(root / f"{name}-log", Simulation(users=users, events=events, seed=2))
    spec = load_spec(root / f"{name}-log" / "spec.toml")
    build(spec.model_copy(update={"items": Items(features=("author_id", "topic"))}), root / name)
    return open_dataset(root / name)


def _disk_bytes(dataset: Dataset) -> int:
    return sum(dataset.shards.file_bytes(table) for table in SHARD_TABLES)


def _encodings(root: Path, events: int) -> Results:
    """Build the dataset, without its table of items, and without any encoding; all must have the same content."""
    dataset = _build(root, "dataset", events // EVENTS_PER_USER, events)
    hashes, sizes = {hash_of(dataset)}, {}
    for name, changes in (
        ("compact, no items", {"items": Items()}),
        ("plain", {"items": Items(), "encoding": "plain"}),
    ):
        build(dataset.spec.model_copy(update=changes), root / "other", overwrite=True)
        other = open_dataset(root / "other")
        hashes.add(hash_of(other))
        sizes[name] = _disk_bytes(other) / other.counts.stored
    shutil.rmtree(root / "other")
    counts = dataset.counts
    return Results(
        [
            Check(
                "bytes per stored event, requests and targets included",
                _disk_bytes(dataset) / counts.stored,
                EVENT_LIMIT,
            ),
            Check("different contents of three encodings", float(len(hashes)), 1.0, "=="),
        ],
        [
            Figure("requests", counts.requests),
            Figure("targets", counts.targets),
            Figure("stored events", counts.stored),
            Figure("mean history", counts.history_events / counts.requests, "events"),
            *(Figure(f"bytes per stored event, {name}", value, "B") for name, value in sizes.items()),
        ],
    )


def _against_baseline(root: Path, events: int) -> Results:
    out = root / "baseline"
    run_module("longbatch.benchmarks.storage", str(root / "dataset"), str(out))
    size = sum(path.stat().st_size for path in out.iterdir())
    dataset = open_dataset(root / "dataset")
    return Results(
        [Check("dataset / baseline, Parquet zstd, bytes", _disk_bytes(dataset) / size, BASELINE_LIMIT)],
        [Figure("bytes per stored event, baseline", size / dataset.counts.stored, "B")],
    )


def write_baseline(dataset: Dataset, out: Path) -> None:
    """Write the rows of a dataset as two Parquet files, as small as plain Parquet gets them.

    Args:
        dataset: The dataset.
        out: Folder to create.
    """
    out.mkdir(parents=True)
    blocks = list(dataset.blocks())
    timelines = pa.Table.from_batches([block.timelines for block in blocks])
    requests = pa.Table.from_batches([block.requests for block in blocks]).drop_columns(["segment", "timeline_row"])
    lists = cast("ArrowListArray", timelines["events"].combine_chunks())
    users = np.repeat(timelines["user_id"].to_numpy(), lists.value_lengths().to_numpy())
    events = cast("pa.StructArray", lists.flatten())
    columns = dict(zip([field.name for field in events.type], events.flatten(), strict=True))
    # differences between the times of a user's events, the first one in full: [5, 7, 7 | 2, 9] -> [5, 2, 0 | 2, 7]
    milliseconds = columns["event_time"].cast(pa.int64()).to_numpy() // 1000
    steps = np.diff(milliseconds, prepend=milliseconds[:1])
    first = np.append(True, users[1:] != users[:-1])
    steps[first] = milliseconds[first]
    flat = pa.table({"user_id": pa.array(users), **columns, "event_time": pa.array(steps)})
    for name, table in (("events", flat), ("requests", requests)):
        settings = choose_settings([table.slice(0, 3 * GROUP_ROWS)], "zstd")
        options = parquet_options(table.schema, "zstd", settings)
        pq.write_table(table, out / f"{name}.parquet", row_group_size=GROUP_ROWS, **options)


def _measure(root: Path, events: int) -> Results:
    """Run `longbatch measure` in a process of its own."""
    run = run_longbatch("measure", str(root / "dataset"), str(root / "savings"), *_budget(events))
    savings = read_savings(root / "savings" / "savings.json")
    headline = savings.headline
    memory = {
        level: savings.layout(f"{level}_level_by_log").memory_bytes / savings.stored.memory_bytes
        for level in ("sample", "request")
    }
    return Results(
        [
            Check("sample level shuffled / dataset, Parquet zstd, bytes", headline.shuffled, SHUFFLED_LIMIT, ">="),
            Check(
                "sample level sorted by user / dataset, Parquet zstd, bytes",
                headline.sorted_by_user,
                SORTED_LIMIT,
                ">=",
            ),
            Check("request level / dataset, bytes in memory", memory["request"], REQUEST_MEMORY_LIMIT, ">="),
            Check("sample level / dataset, bytes in memory", memory["sample"], SAMPLE_MEMORY_LIMIT, ">="),
            Check("measure: wall time (s)", run.seconds, MEASURE_SECONDS),
            Check("measure: peak memory (GB)", run.peak_bytes / 1e9, MEASURE_GB),
        ],
        [
            Figure("sample level, log order, request by request / dataset", headline.log_order, "x"),
            Figure(f"smallest other: {headline.smallest_title} / dataset", headline.smallest, "x"),
        ],
    )


def _budget(events: int) -> list[str]:
    return [] if events >= FULL_EVENTS else ["--budget", QUICK_BUDGET]


def _predict_from_tenth(root: Path, events: int) -> Results:
    """Compare what `plan` predicts from a tenth of the users with what was measured for all of them."""
    tenth = _build(root, "tenth", events // EVENTS_PER_USER // 10, events // 10)
    run_longbatch("measure", str(root / "tenth"), str(root / "tenth-savings"), *_budget(events))
    shutil.rmtree(root / "tenth-log")
    counts, actual = open_dataset(root / "dataset").counts, read_savings(root / "savings" / "savings.json")
    volume = Volume(counts.users, counts.requests, counts.targets, counts.stored, counts.history_events)
    plan = plan_capacity(read_savings(root / "tenth-savings" / "savings.json"), volume, Demand())
    dataset, rates = plan.layout("dataset"), actual.rates
    predicted_and_actual = {
        "dataset": (dataset.disk_bytes, actual.stored.disk_bytes),
        "dataset, in memory": (dataset.memory_bytes, actual.stored.memory_bytes),
        "shuffle": (plan.build.shuffle_bytes, rates.log_rows * rates.row_shuffle_bytes),
    }
    # few users' histories share a page by chance, so predictions of other layouts hold for many users only
    for layout in plan.layouts if events >= FULL_EVENTS else []:
        if layout.name != "dataset" and any(layout.name == other.name for other in actual.layouts):
            file = actual.layout(layout.name).file("Parquet zstd")
            predicted_and_actual[layout.title] = layout.disk_bytes, file.disk_bytes
    checks = [
        Check(f"predicted from a tenth, relative error: {name}", abs(predicted / value - 1), PREDICTED_WITHIN)
        for name, (predicted, value) in predicted_and_actual.items()
    ]
    return Results(checks, [Figure("users of the tenth", tenth.counts.users), *_steady_volume_error(root)])


def _steady_volume_error(root: Path) -> list[Figure]:
    """Stored events that `plan` derives from means, as users enter them, relative to the actual number."""
    dataset = open_dataset(root / "dataset")
    counts = dataset.counts
    first = int(dataset.shards.values("first_request_time").min())
    last = int(dataset.shards.values("last_request_time").max())
    days = (last - first) / DAY_MICROSECONDS
    new_events = sum(
        _events_since(cast("ArrowListArray", block.timelines["events"]), first) for block in dataset.blocks()
    )
    volume = steady_volume(
        users=counts.users,
        requests_per_user_day=counts.requests / counts.users / days,
        targets=counts.targets / counts.requests,
        length=counts.history_events / counts.requests,
        days=days,
        events_per_user_day=new_events / counts.users / days,
    )
    return [Figure("stored events, by plan's formula from means / actual", volume.stored_events / counts.stored, "x")]


def _events_since(events: ArrowListArray, moment_us: int) -> int:
    values = cast("pa.StructArray", events.flatten())
    times = values.field("event_time").cast(pa.int64()).to_numpy()
    return int((times >= moment_us).sum())


def _expand(root: Path, events: int) -> Results:
    """Expand 2M targets (50K if quick) at the built length, and check that nothing was lost."""
    users = (events // 10 if events >= FULL_EVENTS else events // 40) // TARGETS_PER_USER
    for name in ("dataset", "dataset-log", "baseline"):
        shutil.rmtree(root / name)
    many = _build(root, "many", users, 1_000 * users)
    run = run_longbatch("expand", str(root / "many"), str(root / "samples"), "--overwrite", "--check")
    size = sum(path.stat().st_size for path in (root / "samples").iterdir())
    return Results(
        [Check("expand --check: peak memory (GB)", run.peak_bytes / 1e9, EXPAND_GB)],
        [
            Figure("expand --check: targets, each with its history, equal", many.counts.targets),
            Figure("expand --check: wall time", run.seconds, "s"),
            Figure("expand --check: Parquet / dataset, bytes", size / _disk_bytes(many), "x"),
        ],
    )


# each stage uses what earlier ones left in the work folder
STAGES: tuple[Callable[[Path, int], Results], ...] = (
    _encodings,
    _against_baseline,
    _measure,
    _predict_from_tenth,
    _expand,
)


def main() -> None:
    """Write the baseline of a dataset."""
    write_baseline(open_dataset(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
