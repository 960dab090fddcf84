"""Small builds for Great Expectations, and functions that change their counters and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from longbatch.pipelines.canonicalize import canonicalize, gather_log_facts
from longbatch.pipelines.kernel import build_bucket
from longbatch.pipelines.profile import profile_bucket
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.profile import ColumnProfile, Profile, TableName, TableProfile
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.validation.expectations.runner import ExpectationResults, run_expectations

T = 1_700_000_000
SPEC = """
name = "feed"
history_length = 3
time_range = [2023-01-01T00:00:00Z, 2024-01-01T00:00:00Z]
max_rejected = 0.5
max_rejected_for = { missing_user = 0.2 }
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
delay = "1s"
[history.features]
action = { type = "string", values = ["view", "buy"] }
dwell_ms = { type = "int32", min = 0, max = 60000 }
[requests]
source = "log"
where = "click >= 0"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
session_gap = "1s"
max_targets = 2
[requests.features]
tab = { type = "int8", default = -1, min = 0 }
[requests.target_features]
score = { type = "float32", min = 0.1 }
[requests.labels]
click = { type = "int8", values = [0, 1] }
rating = "int8"
"""
LOG = pl.DataFrame(
    [  # user, item, seconds after T, action, dwell_ms, tab, score, click, rating
        (1, 100, 0, "view", 10, 1, 0.5, None, 1),
        (1, 101, 5, "buy", None, None, 0.1, 0, 1),
        (1, 102, 6, "view", 60_000, None, 0.5, 1, 5),
        (1, 103, 7, None, 30, None, None, 0, 2),
        (2, 100, 3, "view", 0, 2, 0.5, 0, 3),
        (2, 101, 9, "view", 5, 2, 0.5, 1, 3),
        (None, 101, 9, "view", 5, 2, 0.5, 1, 3),
    ],
    schema=["user", "item", "time", "action", "dwell_ms", "tab", "score", "click", "rating"],
    orient="row",
).with_columns(pl.col("time") + T)

TableSamples = dict[TableName, pl.DataFrame]


@dataclass(frozen=True)
class Inputs:
    """What a build passes to the expectations."""

    spec: BuildSpec
    profile: Profile
    samples: TableSamples
    row_accounting: Mapping[str, RowAccounting]

    def run(self, out: Path) -> ExpectationResults:
        return run_expectations(self.spec, self.profile, self.samples, self.row_accounting, out)


def built(text: str, raw: Mapping[str, pl.DataFrame], sample_rows: int = 1000) -> Inputs:
    """Build in memory, in one bucket."""
    spec = parse_spec(text)
    typed = {source: canonicalize(frame, spec, source) for source, frame in raw.items()}
    log_facts = gather_log_facts(spec, [part.latest_action for part in typed.values()], None)
    bucket = build_bucket(spec, {source: part.rows for source, part in typed.items()}, log_facts)
    row_accounting = {source: part.accounting + bucket.row_accounting[source] for source, part in typed.items()}
    profile, samples = profile_bucket(spec, bucket, sample_rows)
    return Inputs(spec, profile, samples, row_accounting)


def with_counters(inputs: Inputs, table: TableName, **changes: Any) -> Inputs:
    """Change counters of a table: `column__counter = value`, a `.` written as `_dot_`; `rows = value`."""
    rows = changes.pop("rows", inputs.profile.tables[table].rows)
    columns = dict(inputs.profile.tables[table].columns)
    for key, value in changes.items():
        column, counter = key.replace("_dot_", ".").split("__")
        columns[column] = replace(columns[column], **{counter: value})
    tables = {**inputs.profile.tables, table: TableProfile(rows, columns)}
    return replace(inputs, profile=replace(inputs.profile, tables=tables))


def with_every_counter(inputs: Inputs, change: Callable[[TableProfile, ColumnProfile], ColumnProfile]) -> Inputs:
    tables = {
        table_name: TableProfile(table.rows, {name: change(table, column) for name, column in table.columns.items()})
        for table_name, table in inputs.profile.tables.items()
    }
    return replace(inputs, profile=replace(inputs.profile, tables=tables))


def with_sample(inputs: Inputs, table: TableName, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Inputs:
    return replace(inputs, samples={**inputs.samples, table: change(inputs.samples[table])})


def on_row(row: int, column: str, value: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return a function that changes one value of a sample."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        new = pl.lit(value).cast(frame[column].dtype)
        return frame.with_columns(pl.when(pl.int_range(pl.len()) == row).then(new).otherwise(column).alias(column))

    return change
