"""`longbatch bench days`: 14 days appended one by one beside one build of them all; then users forgotten.

A day's append is measured by the rows of the day and the bytes of state that it reads and writes.
"""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.forget import forget
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.jobs.vacuum import vacuum
from longbatch.pipelines.arrays.hashing import bucket_of
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.snapshot import Snapshot, read_snapshot
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.types import ProgressCallback

from .checks import Check, Figure

DAYS, FORGOTTEN = 14, 100
EVENTS, QUICK_EVENTS = 20_000_000, 1_000_000


def bench_days(
    *, quick: bool = False, folder: Path | None = None, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    """Simulate a log, cut it into days by when its rows are known, and append them."""
    events = QUICK_EVENTS if quick else EVENTS
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work:
        root = Path(work)
        simulate(root / "log", Simulation(users=max(200, events // 6_500), events=events, seed=1, days=DAYS))
        spec = load_spec(root / "log" / "spec.toml")
        borders = _days(root)
        started = time.monotonic()
        build(spec, root / "whole", until=borders[-1])
        figures = [Figure("one build of all days", time.monotonic() - started, "s")]
        for day, border in enumerate(borders):
            progress("days", day, len(borders))
            figures += _one_day(root, spec, day, border)
        equal = _content(root / "grown") == _content(root / "whole")
        checks = [Check("days appended one by one equal one build (content hash)", float(equal), 1.0, "==")]
        return [*checks, *_forget(root / "grown", figures)], figures


def _days(root: Path) -> list[datetime]:
    """Write each day's rows, by when they are known as event or as target, to a folder of its own; the days' ends."""
    rows = pl.scan_parquet(root / "log" / "log" / "*.parquet").with_columns(
        _first=pl.min_horizontal(pl.max_horizontal("event_time", "arrival_time"), "request_time"),
        _last=pl.max_horizontal("event_time", "arrival_time", "request_time"),
    )
    first, last = rows.select(pl.col("_first").min(), pl.col("_last").max().alias("last")).collect().row(0)
    # Only the last part of a simulated log has targets; the first day holds all that is before them.
    opened = rows.filter(pl.col("tab") > 0).select(pl.col("request_time").min()).collect().item()
    step = (last - opened) // DAYS + 1
    ends = [opened + step * day for day in range(1, DAYS + 1)]
    low = first
    for day, end in enumerate(ends):
        folder = root / "days" / f"{day:02d}"
        folder.mkdir(parents=True)
        part = rows.filter((pl.col("_last") >= low) & (pl.col("_first") < end)).drop("_first", "_last")
        part.sink_parquet(folder / "rows.parquet")
        low = end
    return [datetime.fromtimestamp(end / 1000, UTC) for end in ends]


def _one_day(root: Path, spec: BuildSpec, day: int, border: datetime) -> list[Figure]:
    path = root / "days" / f"{day:02d}" / "rows.parquet"
    log = spec.sources["log"].model_copy(update={"path": (str(path),)})
    spec = spec.model_copy(update={"sources": {"log": log}})
    started = time.monotonic()
    if day == 0:
        build(spec, root / "grown", until=border)
    else:
        append(spec, root / "grown", border)
    seconds = time.monotonic() - started
    state = sum(entry.size_bytes for entry in read_snapshot(root / "grown").state) / 1e6
    rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    return [
        Figure(f"day {day + 1}: rows", rows, ""),
        Figure(f"day {day + 1}: time", seconds, "s"),
        Figure(f"day {day + 1}: state", state, "MB"),
    ]


def _content(out: Path) -> str:
    opened = open_dataset(out)
    return content_hash(opened.blocks(), opened.spec.history_length)


def _forget(out: Path, figures: list[Figure]) -> list[Check]:
    """Forget the users of as few buckets as hold so many, and look for them in every file."""
    before = read_snapshot(out)
    users = _neighbours(out, before)
    touched = set(bucket_of(users, before.buckets or 1).tolist())
    done = forget(out, [str(user) for user in users])
    vacuum(out)
    figures += [
        Figure(f"forget {FORGOTTEN} users: time", done.seconds, "s"),
        Figure(f"forget {FORGOTTEN} users: buckets that hold them", len(touched), ""),
        Figure(f"forget {FORGOTTEN} users: shards written anew", done.rewritten_shards, ""),
        Figure("buckets", before.buckets or 1, ""),
        Figure("shards", done.shards, ""),
    ]
    theirs = sum(shard.bucket in touched for shard in before.shards)
    return [
        Check("shards written anew, those of the users' buckets at most", done.rewritten_shards, theirs),
        Check("rows of forgotten users in any file after vacuum", _rows_of(out, users.tolist()), 0, "=="),
    ]


def _neighbours(out: Path, snapshot: Snapshot) -> np.ndarray:
    """So many users, those of the first bucket first."""
    shards = [pl.read_ipc(out / shard.timelines.path, columns=["user_id"]) for shard in snapshot.shards]
    users = pl.concat(shards)["user_id"].unique().sort().to_numpy()
    return np.asarray(users[np.argsort(bucket_of(users, snapshot.buckets or 1), kind="stable")][:FORGOTTEN])


def _rows_of(out: Path, users: list[int]) -> int:
    """Rows that carry one of the users, in every file of the dataset's folder that has a column of users."""
    found = 0
    for path in out.rglob("*"):
        if path.suffix in (".arrow", ".parquet"):
            rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ipc(path)
            if "user_id" in rows.columns:
                found += rows.filter(pl.col("user_id").is_in(users)).height
    return found
