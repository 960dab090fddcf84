"""Two simulated logs that tests share, one clean and one corrupt, and what their rows look like."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from longbatch.jobs.simulation.corrupt_rows import CorruptionSettings
from longbatch.jobs.simulation.ground_truth import read_truth
from longbatch.jobs.simulation.simulate import Simulation
from longbatch.jobs.simulation.world import DAY_MS, EPOCH_MS

SMALL = Simulation(users=60, events=300_000, seed=7, days=30)
CORRUPT = Simulation(users=60, events=300_000, seed=7, days=30, corrupt=0.02)
COLUMNS = {
    "request_id": pl.Int64,
    "user_id": pl.Int64,
    "item_id": pl.Int64,
    "author_id": pl.Int32,
    "topic": pl.Int16,
    "position": pl.Int8,
    "tab": pl.Int8,
    "request_time": pl.Int64,
    "event_time": pl.Int64,
    "arrival_time": pl.Int64,
    "dwell_ms": pl.Int32,
    "click": pl.Int8,
    "long_view": pl.Int8,
    "like": pl.Int8,
}
END_MS = EPOCH_MS + 30 * DAY_MS  # of SMALL and CORRUPT
CSV = CorruptionSettings(0.02, "csv", END_MS)


def read_log(out: Path) -> pl.DataFrame:
    """All rows of a simulated Parquet log, in order."""
    return pl.concat(pl.read_parquet(path) for path in sorted((out / "log").iterdir()))


def planted_by_table(out: Path) -> dict[str, dict[str, int]]:
    """The planted rows of a simulated log, by table of the spec, then by corruption."""
    planted: dict[str, dict[str, int]] = read_truth(out).document["planted_by_table"]
    return planted


def number(value: object) -> float:
    """The same number; the types of Polars and of reports allow other values too."""
    assert isinstance(value, int | float)
    return value
