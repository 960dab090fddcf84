"""The profile: exact counters that add up over buckets, a bounded sample, the largest."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from longbatch.pipelines.arrays.hashing import bucket_of
from longbatch.pipelines.canonicalize import canonicalize
from longbatch.pipelines.kernel import build_bucket
from longbatch.pipelines.profile import TableSamples, profile_bucket
from longbatch.schemas.profile import ColumnProfile, Large, Profile, profile_of
from longbatch.schemas.spec.build_spec import BuildSpec

T = 1_700_000_000
SPEC = BuildSpec.model_validate(
    {
        "history_length": 2,
        "sources": {"log": {"path": "log.parquet"}},
        "history": {
            "source": "log",
            "user_id": "user",
            "item_id": "item",
            "event_time": {"column": "t", "unit": "s"},
            "features": {"ratio": "float32"},
        },
        "requests": {
            "source": "log",
            "where": "shown",
            "user_id": "user",
            "item_id": "item",
            "request_time": {"column": "t", "unit": "s"},
            "labels": {"click": "bool"},
        },
    }
)
LOG = pl.DataFrame(
    {
        "user": [1, 1, 1, 1, 2],
        "item": [10, 11, 12, 13, 10],
        "t": [T, T + 1, T + 2, T + 9, T],
        "ratio": [0.5, None, float("nan"), 2.0, 1.0],
        "shown": [True, False, False, True, True],
        "click": [True, None, None, False, True],
    }
)


def profiled(log: pl.DataFrame, rows: int = 100, buckets: int = 1) -> tuple[Profile, list[TableSamples]]:
    typed = canonicalize(log, SPEC, "log").rows
    bucket = pl.Series(bucket_of(typed["user#id(int64)"].to_numpy(), buckets))
    parts = [build_bucket(SPEC, {"log": typed.filter(bucket == n)}) for n in range(buckets)]
    profiles = [profile_bucket(SPEC, part, rows) for part in parts]
    return sum((profile for profile, _ in profiles), Profile()), [samples for _, samples in profiles]


def test_counters_are_exact() -> None:
    profile, _ = profiled(LOG)
    assert {name: table.rows for name, table in profile.tables.items()} == {
        "events": 5,
        "impressions": 3,
        "requests": 3,
    }
    ratio = profile.tables["events"].columns["history.ratio"]
    assert ratio == ColumnProfile(nulls=1, min=0.5, max=2.0, total=3.5)
    assert profile.tables["impressions"].columns["label.click"] == ColumnProfile(0, 0, 1, 2.0)
    assert profile.tables["requests"].columns["history_length"] == ColumnProfile(0, 0, 2, 2.0)
    assert profile.tables["requests"].columns["newest_age_us"] == ColumnProfile(2, 7_000_000, 7_000_000, 7e6)
    assert profile.tables["events"].columns["event_time"].total is None


def test_the_profile_does_not_depend_on_the_buckets() -> None:
    assert profiled(LOG)[0] == profiled(LOG, buckets=3)[0]


def test_the_skew_lists_the_largest_and_bins_history_lengths() -> None:
    skew = profiled(LOG)[0].skew
    assert skew.users == (Large(4, "1"), Large(1, "2"))
    assert {large.size for large in skew.requests} == {1}
    assert skew.history_lengths == {0: 2, 2: 1}


def test_a_small_table_is_sampled_completely_in_order() -> None:
    events = profiled(LOG)[1][0]["events"]
    assert events["item_id"].to_list() == [10, 11, 12, 13, 10]
    assert events["event_time"].dtype == pl.Datetime("us", "UTC")


def test_a_sample_is_bounded_and_does_not_depend_on_the_order_of_rows() -> None:
    users = [user for user in range(50) for _ in range(20)]
    log = pl.DataFrame({"user": users, "item": [n % 20 for n in range(1000)]}).with_columns(
        t=T + pl.col("item"), ratio=pl.lit(1.0), shown=pl.col("item") == 19, click=pl.lit(True)
    )
    sample = profiled(log, 200)[1][0]["events"]
    again = profiled(log.sample(fraction=1.0, shuffle=True, seed=1), 200)[1][0]["events"]
    assert sample.equals(again)
    assert sample.height == 200
    assert sample["user_id"].n_unique() > 40
    assert sample.equals(sample.sort("user_id", "visible_time"))


def test_a_profile_is_equal_after_json() -> None:
    profile, _ = profiled(LOG)
    document: Any = json.loads(json.dumps(profile.as_dict()))
    assert profile_of(document) == profile


def test_an_empty_bucket_has_a_profile() -> None:
    profile, samples = profiled(LOG.head(0))
    assert profile.tables["events"].rows == 0
    assert samples[0]["requests"].height == 0
