"""The profile of a bucket: exact counters of its tables, a bounded sample of each, and the largest users and requests.

A sample holds the rows with the smallest hash of user and position, so it does not depend on the engine or on the
order of files.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.hashing import cached_parts, mix
from longbatch.pipelines.arrays.runs import positions_in_run, starts_run
from longbatch.schemas.profile import ColumnProfile, Profile, Skew, TableName, TableProfile
from longbatch.schemas.ragged import owners_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array

from .incremental import NEW
from .kernel import BuiltBucket
from .policies import largest
from .valid_rows import VISIBLE_TIME

SEED = np.uint64(0x5851F42D4C957F2D)
TIMES = ("event_time", "visible_time", "request_time")
TableSamples = dict[TableName, pl.DataFrame]
"""Sampled rows of the tables "events", "impressions" and "requests"."""


def profile_bucket(spec: BuildSpec, bucket: BuiltBucket, sample_rows: int) -> tuple[Profile, TableSamples]:
    """Profile a bucket's three tables.

    Args:
        spec: The build spec.
        bucket: The bucket.
        sample_rows: The most rows to sample of each table.

    Returns:
        The counters of all rows, and the samples.
    """
    tables = _tables(spec, bucket)
    # Sums of times and ids have no meaning.
    without_total = {*TIMES, "user_id", "item_id", "request_id", *_id_features(spec)}
    profiles = {name: _profile_table(table, without_total) for name, table in tables.items()}
    samples = {name: _sample(table, sample_rows) for name, table in tables.items()}
    return Profile(profiles, _skew(bucket, tables["requests"])), samples


def _tables(spec: BuildSpec, bucket: BuiltBucket) -> TableSamples:
    """Build the tables "events", "impressions" and "requests", each ordered by user; times in microseconds."""
    grouped = bucket.requests
    history = [name for name in bucket.timelines.events.columns if name.startswith("history.")]
    events = bucket.timelines.events.select("user_id", "item_id", "event_time", VISIBLE_TIME, *history)
    if (bucket.previous_status != NEW).any():  # events of earlier increments are in the profile already
        events = events.filter(pl.Series(bucket.previous_status == NEW))
    features = [name for name in grouped.requests.columns if name.startswith("request.")]
    context = grouped.requests.select("request_id", "user_id", "request_time", *features)
    impressions = pl.concat([context[owners_of(grouped.target_offsets)], grouped.targets], how="horizontal")
    # Age of the newest event that each request sees: how fresh histories are.
    newest_event = bucket.event_start + bucket.history_end - 1
    visible = bucket.timelines.visible_time
    has_history = bucket.history_end > 0
    time = grouped.requests["request_time"].to_numpy()
    # Without a history, `newest_event` would be the last event of the user before, or -1.
    age = np.zeros_like(time)
    if len(visible):
        age = np.where(has_history, time - visible[np.where(has_history, newest_event, 0)], 0)
    requests = context.select("request_id", "user_id", "request_time").with_columns(
        pl.Series("targets", np.diff(grouped.target_offsets)),
        pl.Series("history_length", np.minimum(bucket.history_end, spec.history_length)),
        pl.Series("newest_age_us", age).set(pl.Series(~has_history), None),
    )
    requests = pl.concat([requests, context.select(features)], how="horizontal") if features else requests
    return {"events": events, "impressions": impressions, "requests": requests}


def _id_features(spec: BuildSpec) -> list[str]:
    roles = {
        "history": spec.history.features,
        "request": spec.requests.features,
        "target": spec.requests.target_features,
    }
    return [f"{role}.{name}" for role, features in roles.items() for name, f in features.items() if f.type == "id"]


def _profile_table(table: pl.DataFrame, without_total: set[str]) -> TableProfile:
    """Count nulls of all columns, and min, max and total of numbers; NaN is excluded, integer totals are exact."""
    counters: list[pl.Expr] = []
    for name, dtype in table.schema.items():
        value = pl.col(name)
        counters.append(value.null_count().alias(f"{name}\nnulls"))
        if dtype.is_float():
            value = value.fill_nan(None)
        if dtype.is_numeric() or dtype == pl.Boolean:
            value = value.cast(pl.Int8) if dtype == pl.Boolean else value
            counters += [value.min().alias(f"{name}\nmin"), value.max().alias(f"{name}\nmax")]
            if name not in without_total:
                counters.append(value.cast(_sum_type(dtype)).sum().alias(f"{name}\ntotal"))
    # One select computes all counters of all columns in parallel.
    values = {key: _finite(number) for key, number in table.select(counters).row(0, named=True).items()}
    columns = {
        name: ColumnProfile(
            nulls=int(values[f"{name}\nnulls"] or 0),
            min=values.get(f"{name}\nmin"),
            max=values.get(f"{name}\nmax"),
            total=values.get(f"{name}\ntotal"),
        )
        for name in table.columns
    }
    return TableProfile(table.height, columns)


def _finite(number: float | None) -> float | None:
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _sum_type(dtype: pl.DataType) -> pl.DataType:
    """Return a type that holds the exact sum of a bucket: 64 bits for fewer than 2^31 integers of 32 bits."""
    if dtype.is_float():
        return pl.Float64()
    return pl.Int128() if dtype in (pl.Int64, pl.UInt64) else pl.Int64()


def _sample(table: pl.DataFrame, rows: int) -> pl.DataFrame:
    """Return the rows with the smallest hash of their user and their position among the user's rows, in order."""
    if table.height > rows:
        user: Int64Array = table["user_id"].to_numpy()
        table = table[_smallest_hashes(user, positions_in_run(starts_run(user)), rows)]
    times = [pl.col(name).cast(pl.Datetime("us", "UTC")) for name in TIMES if name in table.columns]
    return table.with_columns(times)


def _smallest_hashes(user: Int64Array, position: Int64Array, rows: int) -> Int64Array:
    """Return the row numbers, ascending, of the `rows` of N with the smallest hashes.

    Hashes are uniform, so about 1.25 * rows of them are below 1.25 * rows / N of the range of 64 bits.
    Only these candidates are partitioned. If they are too few, the limit is doubled until they are enough.
    """
    # Bottom-k sampling: which rows are drawn depends on users and positions only, never on files, tasks or the engine.
    hashed = np.empty(len(user), dtype=np.uint64)
    for part in cached_parts(len(user)):
        hashed[part] = mix(mix(user[part].view(np.uint64) ^ SEED) + position[part].view(np.uint64))
    candidates = np.arange(len(user))
    share = 1.25 * rows / len(user)
    while share < 1:
        below = np.flatnonzero(hashed < np.uint64(share * 2**64))
        if len(below) >= rows:
            candidates = below
            break
        share *= 2
    # A selection in linear time; a full sort of the hashes is not needed.
    return np.sort(candidates[np.argpartition(hashed[candidates], rows - 1)[:rows]])


def _skew(bucket: BuiltBucket, requests: pl.DataFrame) -> Skew:
    users, events = np.unique(bucket.timelines.user_id, return_counts=True)
    sizes = requests["targets"].to_numpy()
    names = requests.select(pl.format("{}/{}", "user_id", "request_id")).to_series()
    # The bit length of n is ceil(log2(n + 1)).
    bit_lengths = np.ceil(np.log2(requests["history_length"].to_numpy().astype(np.float64) + 1)).astype(np.int64)
    bits, counts = np.unique(bit_lengths, return_counts=True)
    return Skew(
        users=largest(events, pl.Series(users)),
        requests=largest(sizes, names),
        history_lengths=dict(zip(bits.tolist(), counts.tolist(), strict=True)),
        policy_users=bucket.policy_users,
    )
