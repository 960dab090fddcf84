"""The profile of a bucket: exact counters of its tables, a bounded sample of each, and who is largest.

The sample is drawn by a hash of user and place, so that it is the same whatever the engine and the order of files.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.hashing import cached_parts, mix
from longbatch.pipelines.arrays.ragged import changes, places
from longbatch.schemas.profile import ColumnProfile, Profile, Skew, TableName, TableProfile
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array

from .incremental import NEW
from .kernel import VISIBLE_TIME, Bucket
from .policies import largest

SEED = np.uint64(0x5851F42D4C957F2D)
TIMES = ("event_time", "visible_time", "request_time")
Samples = dict[TableName, pl.DataFrame]


def profile_bucket(spec: BuildSpec, bucket: Bucket, sample_rows: int) -> tuple[Profile, Samples]:
    """Return the counters of a bucket's three tables, and at most `sample_rows` rows of each."""
    tables = _tables(spec, bucket)
    untotalled = {*TIMES, "user_id", "item_id", "request_id", *_id_features(spec)}
    profiles = {name: _profile_table(table, untotalled) for name, table in tables.items()}
    return Profile(profiles, _skew(bucket, tables["requests"])), {
        name: _sample(table, sample_rows) for name, table in tables.items()
    }


def _tables(spec: BuildSpec, bucket: Bucket) -> Samples:
    """Build the tables "events", "impressions" and "requests", each ordered by user; times in microseconds."""
    grouped = bucket.requests
    history = [name for name in bucket.timelines.events.columns if name.startswith("history.")]
    events = bucket.timelines.events.select("user_id", "item_id", "event_time", VISIBLE_TIME, *history)
    if (bucket.reaches != NEW).any():  # of an append: the others are in the profile of the days before
        events = events.filter(pl.Series(bucket.reaches == NEW))
    sizes = np.diff(grouped.target_offsets)
    features = [name for name in grouped.requests.columns if name.startswith("request.")]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    context = grouped.requests.select("request_id", "user_id", "request_time", *features)
    impressions = pl.concat([context[owner], grouped.targets], how="horizontal")
    newest = bucket.event_start + bucket.history_end - 1
    visible = bucket.timelines.visible_time
    seen = bucket.history_end > 0
    time = grouped.requests["request_time"].to_numpy()
    age = np.where(seen, time - visible[np.where(seen, newest, 0)], 0) if len(visible) else np.zeros_like(time)
    requests = context.select("request_id", "user_id", "request_time").with_columns(
        pl.Series("targets", sizes),
        pl.Series("history_length", np.minimum(bucket.history_end, spec.history_length)),
        pl.Series("newest_age_us", age).set(pl.Series(~seen), None),
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


def _profile_table(table: pl.DataFrame, untotalled: set[str]) -> TableProfile:
    """Counters of all columns: nulls of any, and min, max and total of numbers (NaN left out, whole numbers exact)."""
    counted: list[pl.Expr] = []
    for name, dtype in table.schema.items():
        value = pl.col(name)
        counted.append(value.null_count().alias(f"{name}\nnulls"))
        if dtype.is_float():
            value = value.fill_nan(None)
        if dtype.is_numeric() or dtype == pl.Boolean:
            value = value.cast(pl.Int8) if dtype == pl.Boolean else value
            counted += [value.min().alias(f"{name}\nmin"), value.max().alias(f"{name}\nmax")]
            if name not in untotalled:
                wide = _wide(dtype)
                counted.append(value.cast(wide).sum().alias(f"{name}\ntotal"))
    found = table.select(counted).row(0, named=True)
    columns: dict[str, dict[str, float | None]] = {name: {} for name in table.columns}
    for key, number in found.items():
        name, _, counter = key.rpartition("\n")
        finite = number is not None and (not isinstance(number, float) or math.isfinite(number))
        columns[name][counter] = number if finite else None
    return TableProfile(table.height, {name: ColumnProfile(**counters) for name, counters in columns.items()})  # type: ignore[arg-type]


def _wide(dtype: pl.DataType) -> pl.DataType:
    """A type that holds the exact sum of a bucket's whole numbers; below 2^31 rows of 32 bits fit in 64."""
    if dtype.is_float():
        return pl.Float64()
    return pl.Int128() if dtype in (pl.Int64, pl.UInt64) else pl.Int64()


def _sample(table: pl.DataFrame, rows: int) -> pl.DataFrame:
    """Keep the rows with the smallest hash of their user and their place among the user's rows, in their order."""
    if table.height > rows:
        user: Int64Array = table["user_id"].to_numpy()
        table = table[_drawn(user, places(changes(user)), rows)]
    times = [pl.col(name).cast(pl.Datetime("us", "UTC")) for name in TIMES if name in table.columns]
    return table.with_columns(times)


def _drawn(user: Int64Array, place: Int64Array, rows: int) -> Int64Array:
    """Places, ascending, of the `rows` of N with the smallest hashes.

    Hashes are even, so those below a share a little over rows / N are enough to choose from; if not, twice as many are.
    """
    hashed = np.empty(len(user), dtype=np.uint64)
    for part in cached_parts(len(user)):
        hashed[part] = mix(mix(user[part].view(np.uint64) ^ SEED) + place[part].view(np.uint64))
    share = 1.25 * rows / len(user)
    while share < 1 and len(near := np.flatnonzero(hashed < np.uint64(share * 2**64))) < rows:
        share *= 2
    near = near if share < 1 else np.arange(len(user))
    return np.sort(near[np.argpartition(hashed[near], rows - 1)[:rows]])


def _skew(bucket: Bucket, requests: pl.DataFrame) -> Skew:
    users, events = np.unique(bucket.timelines.user_id, return_counts=True)
    sizes = requests["targets"].to_numpy()
    names = requests.select(pl.format("{}/{}", "user_id", "request_id")).to_series()
    lengths = np.ceil(np.log2(requests["history_length"].to_numpy().astype(np.float64) + 1)).astype(np.int64)
    bits, counts = np.unique(lengths, return_counts=True)
    return Skew(
        users=largest(events, pl.Series(users)),
        requests=largest(sizes, names),
        history_lengths=dict(zip(bits.tolist(), counts.tolist(), strict=True)),
        policy_users=bucket.policy_users,
    )
