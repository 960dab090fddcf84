"""`longbatch bench skew`: extremely uneven logs, each built within the same memory.

One user with most of the events among many users with few; a bot with one event a millisecond; a request with 50,000
targets; a bucket that all users share.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.hashing import bucket_of
from longbatch.schemas.types import ProgressCallback

from .build import PEAK_LIMIT_GB
from .checks import WORK_PREFIX, Check, Figure, Results
from .processes import run_longbatch

START_MS = 1_700_000_000_000
SPEC = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "ms" }
features = { author = "int32" }
[requests]
source = "log"
where = "is_request"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "ms" }
request_id = "request"
labels = { click = "int8" }
"""


def bench_skew(
    *, quick: bool = False, spark: bool = True, folder: Path | None = None, progress: ProgressCallback
) -> Results:
    """Build each log with each engine in processes of their own.

    Args:
        quick: Use logs of a tenth of the size.
        spark: Include the spark engine.
        folder: Where the work folder is created.
        progress: Called before each run.

    Returns:
        Peak memory of the largest Python process as checks, times as figures.
    """
    scale = 10 if quick else 1
    cases = {
        "5M events of one user among 100K": _heavy_user(5_000_000 // scale, 100_000 // scale),
        "a bot, one event a millisecond": _bot(3_600_000 // scale),
        "a request of 50,000 targets": _large_request(50_000 // scale),
        "one hot bucket of 8": _hot_bucket(4_000_000 // scale),
    }
    results = Results([], [])
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work:
        Path(work, "spec.toml").write_text(SPEC)
        for number, (name, log) in enumerate(cases.items()):
            shuffled = log.sample(fraction=1, shuffle=True, seed=1)
            shuffled.write_parquet(Path(work, "log.parquet"), row_group_size=250_000)
            for engine in ["local", *(["spark"] if spark else [])]:
                progress("cases", number, len(cases))
                options = ["--engine", "spark", "--master", "local[2]"] if engine == "spark" else []
                run = run_longbatch("build", f"{work}/spec.toml", f"{work}/out", *options)
                shutil.rmtree(Path(work, "out"))
                title = f"{engine}, {name}"
                results.figures.append(Figure(f"{title} ({log.height:,} rows): time", run.seconds, "s"))
                if run.java_peak_bytes:
                    java_gb = run.java_peak_bytes / 1e9
                    results.figures.append(Figure(f"{title}: largest Java process", java_gb, "GB"))
                python_gb = run.peak_bytes / 1e9
                results.checks.append(Check(f"{title}: largest Python process (GB)", python_gb, PEAK_LIMIT_GB))
        progress("cases", 1, 1)
    return results


def _rows(user: np.ndarray, time: np.ndarray) -> pl.DataFrame:
    """Rows of the given users and times; every twentieth row is also the target of a request of its own."""
    n = np.arange(len(user))
    return pl.DataFrame(
        {
            "user": user,
            "item": n * 7919 % 1_000_003,
            "time": START_MS + time,
            "request": n,
            "is_request": n % 20 == 0,
            "author": (n % 5_003).astype(np.int32),
            "click": (n % 3 == 0).astype(np.int8),
        }
    )


def _heavy_user(events: int, others: int) -> pl.DataFrame:
    user = np.concatenate([np.zeros(events, dtype=np.int64), 1 + np.repeat(np.arange(others), 10)])
    return _rows(user, np.concatenate([np.arange(events) * 500, np.arange(10 * others) % 1_000_000 * 1_000]))


def _bot(events: int) -> pl.DataFrame:
    return _rows(np.zeros(events, dtype=np.int64), np.arange(events))


def _large_request(targets: int) -> pl.DataFrame:
    user = np.repeat(np.arange(100), 1_000)
    before = _rows(user, np.arange(len(user)) * 10)
    n = np.arange(targets)
    wide = _rows(np.zeros(targets, dtype=np.int64), np.full(targets, 10_000_000))
    request = pl.lit(10**9, dtype=pl.Int64)
    return pl.concat([before, wide.with_columns(item=pl.Series(n), request=request, is_request=pl.lit(True))])


def _hot_bucket(events: int) -> pl.DataFrame:
    candidates = np.arange(80_000)
    hot = candidates[bucket_of(candidates, 4) == 0]
    return _rows(hot[np.arange(events) % len(hot)], np.arange(events) * 20)
