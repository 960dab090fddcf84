"""`longbatch bench days`: 14 days appended one by one, compared with one build of all; then users are forgotten.

For each append the rows of the day and the bytes of incremental state are reported.
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
from longbatch.schemas.format.snapshot import Snapshot, read_snapshot
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.types import Int64Array, ProgressCallback

from .checks import WORK_PREFIX, Check, Figure, Results, combined, hash_of, timed

DAYS, FORGOTTEN = 14, 100
EVENTS, QUICK_EVENTS = 20_000_000, 1_000_000


def bench_days(*, quick: bool = False, folder: Path | None = None, progress: ProgressCallback) -> Results:
    """Simulate a log, split it into days by arrival time, append them one by one, and forget users.

    Args:
        quick: Use a smaller log.
        folder: Where the work folder is created.
        progress: Called before each day.

    Returns:
        Equality of content as checks; rows, time and state of each day as figures.
    """
    events = QUICK_EVENTS if quick else EVENTS
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work:
        root = Path(work)
        simulate(root / "log", Simulation(users=max(200, events // 6_500), events=events, seed=1, days=DAYS))
        spec = load_spec(root / "log" / "spec.toml")
        day_ends = _split_into_days(root)
        seconds = timed(lambda: build(spec, root / "at_once", until=day_ends[-1]))
        results = [Results([], [Figure("one build of all days", seconds, "s")])]
        for day, end in enumerate(day_ends):
            progress("days", day, len(day_ends))
            results.append(Results([], _one_day(root, spec, day, end)))
        equal = hash_of(root / "grown") == hash_of(root / "at_once")
        check = Check("days appended one by one equal one build (content hash)", float(equal), 1.0, "==")
        return combined([*results, Results([check], []), _forget(root / "grown")])


def _split_into_days(root: Path) -> list[datetime]:
    """Write the rows of each day to a folder of its own, and return the ends of the days.

    A row belongs to every day from its first arrival (as event or as target) to its last one.
    """
    rows = pl.scan_parquet(root / "log" / "log" / "*.parquet").with_columns(
        _first=pl.min_horizontal(pl.max_horizontal("event_time", "arrival_time"), "request_time"),
        _last=pl.max_horizontal("event_time", "arrival_time", "request_time"),
    )
    first, last = rows.select(pl.col("_first").min(), pl.col("_last").max().alias("last")).collect().row(0)
    # Only the last part of a simulated log has targets; the first day contains everything before them.
    first_target = rows.filter(pl.col("tab") > 0).select(pl.col("request_time").min()).collect().item()
    step = (last - first_target) // DAYS + 1
    ends = [first_target + step * day for day in range(1, DAYS + 1)]
    low = first
    for day, end in enumerate(ends):
        folder = root / "days" / f"{day:02d}"
        folder.mkdir(parents=True)
        part = rows.filter((pl.col("_last") >= low) & (pl.col("_first") < end)).drop("_first", "_last")
        part.sink_parquet(folder / "rows.parquet")
        low = end
    return [datetime.fromtimestamp(end / 1000, UTC) for end in ends]


def _one_day(root: Path, spec: BuildSpec, day: int, end: datetime) -> list[Figure]:
    path = root / "days" / f"{day:02d}" / "rows.parquet"
    log = spec.sources["log"].model_copy(update={"path": (str(path),)})
    spec = spec.model_copy(update={"sources": {"log": log}})
    started = time.monotonic()
    if day == 0:
        build(spec, root / "grown", until=end)
    else:
        append(spec, root / "grown", end)
    seconds = time.monotonic() - started
    state = sum(entry.size_bytes for entry in read_snapshot(LocalStore(root / "grown")).state) / 1e6
    rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    return [
        Figure(f"day {day + 1}: rows", rows),
        Figure(f"day {day + 1}: time", seconds, "s"),
        Figure(f"day {day + 1}: state", state, "MB"),
    ]


def _forget(out: Path) -> Results:
    """Forget the users of as few buckets as possible, and look for them in every file."""
    before = read_snapshot(LocalStore(out))
    buckets = before.buckets or 1
    users = _users_of_first_buckets(out, before)
    users_buckets = set(bucket_of(users, buckets).tolist())
    summary = forget(out, [str(user) for user in users])
    vacuum(out)
    expected = int(np.isin(before.shards.values("bucket"), list(users_buckets)).sum())
    return Results(
        [
            Check("shards rewritten, at most those of the users' buckets", summary.rewritten_shards, expected),
            Check("rows of forgotten users in any file after vacuum", _rows_of(out, users.tolist()), 0, "=="),
        ],
        [
            Figure(f"forget {FORGOTTEN} users: time", summary.seconds, "s"),
            Figure(f"forget {FORGOTTEN} users: buckets of these users", len(users_buckets)),
            Figure(f"forget {FORGOTTEN} users: shards rewritten", summary.rewritten_shards),
            Figure("buckets", buckets),
            Figure("shards", summary.shards),
        ],
    )


def _users_of_first_buckets(out: Path, snapshot: Snapshot) -> Int64Array:
    """Return FORGOTTEN users, those of the first bucket first."""
    shards = [pl.read_ipc(out / shard.timelines.path, columns=["user_id"]) for shard in snapshot.shards]
    users = pl.concat(shards)["user_id"].unique().sort().to_numpy()
    return np.asarray(users[np.argsort(bucket_of(users, snapshot.buckets or 1), kind="stable")][:FORGOTTEN])


def _rows_of(out: Path, users: list[int]) -> int:
    """Count rows with one of the users, in every file of the dataset's folder that has a column of users."""
    count = 0
    for path in out.rglob("*"):
        if path.suffix in (".arrow", ".parquet"):
            rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ipc(path)
            if "user_id" in rows.columns:
                count += rows.filter(pl.col("user_id").is_in(users)).height
    return count
