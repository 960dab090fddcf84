"""Small datasets of samples, requests and timelines for the tests of `jobs/savings`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.jobs.build import build
from longbatch.jobs.savings.layouts import Layout, layouts
from longbatch.jobs.savings.survey import survey
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import parse_spec

SPEC = """
name = "tiny <log>"
history_length = 3
block_events = 4
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
request_id = "request"
features = { action = "int16" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
features = { tab = "int8" }
target_features = { position = "int8" }
labels = { click = "int8" }
"""
DAY = 1_700_000_000
# (request, user, seconds, item, position, click): three requests of user 1, two of user 2 in between
ROWS = [
    (10, 1, 0, 101, 0, 1),
    (10, 1, 0, 102, 1, 0),
    (20, 2, 1, 201, 0, 0),
    (11, 1, 2, 103, 0, 1),
    (11, 1, 2, 104, 1, 0),
    (11, 1, 2, 105, 2, 0),
    (21, 2, 3, 202, 0, 1),
    (12, 1, 4, 106, 0, 0),
]


def build_rows(root: Path, rows: list[tuple[int, int, int, int, int, int]], spec: str = SPEC) -> Dataset:
    """Write rows as a log and build it."""
    frame = pl.DataFrame(rows, ["request", "user", "time", "item", "position", "click"], orient="row")
    frame = frame.with_columns(pl.col("time") + DAY, action=pl.col("item") % 7, tab=pl.col("request") % 2)
    frame.write_parquet(root / "log.parquet")
    build(parse_spec(spec).with_paths_from(root), root / "dataset")
    return open_dataset(root / "dataset")


def layouts_by_name(dataset: Dataset) -> dict[str, Layout]:
    """Every layout of a dataset, from all of its blocks."""
    return {
        layout.name: layout for layout in layouts(survey(dataset, np.random.default_rng(0)), np.random.default_rng(1))
    }


def read_layout(layout: Layout, slices: int = 1) -> pa.Table:
    """Concatenate a layout from adjacent slices; of the user level only the requests."""
    edges = np.linspace(0, layout.bytes, slices + 1).astype(int).tolist()
    slices_of_rows = [layout.rows_starting_in(start, stop) for start, stop in pairwise(edges)]
    return pa.concat_tables([layout.tables(rows)[-1] for rows in slices_of_rows if len(rows.owners)])


def naive_samples(dataset: Dataset, by_time: bool) -> list[dict[str, Any]]:
    """Sample-level rows from the dataset's own scan, one target at a time."""
    requests = [row for batch in dataset.scan() for row in batch.to_pylist()]
    if by_time:
        requests.sort(key=lambda row: row["request_time"])
    return [
        {
            **{name: row[name] for name in ("request_id", "user_id", "request_time", "tab")},
            **{f"history_{name}": [e[name] for e in row["history"]] for name in ("item_id", "event_time", "action")},
            **{f"target_{name}": value for name, value in target.items()},
        }
        for row in requests
        for target in row["targets"]
    ]
