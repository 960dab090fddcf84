"""Results of tasks add up field by field."""

from __future__ import annotations

from dataclasses import fields, replace

import polars as pl

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.format.manifest import FileEntry


def test_every_field_has_a_rule_of_addition() -> None:
    assert all("total" in field.metadata for field in fields(BuildResult))


def test_an_empty_result_changes_nothing() -> None:
    result = BuildResult(counts=Counts(requests=3), latest_action=5, buckets=2, collisions=1)
    assert result + BuildResult() == BuildResult() + result == result


def test_fields_add_up_by_name() -> None:
    first = BuildResult(
        row_accounting={"log": RowAccounting(rows=2, accepted=2)},
        counts=Counts(requests=1),
        latest_action=7,
        shuffled_bytes=10,
        samples={"events": pl.DataFrame({"n": [1]})},
    )
    second = BuildResult(
        row_accounting={"log": RowAccounting(rows=1, rejected=1), "actions": RowAccounting(rows=4, accepted=4)},
        counts=Counts(requests=2),
        latest_action=6,
        log_end=9,
        buckets=3,
        shuffled_bytes=5,
        samples={"events": pl.DataFrame({"n": [2]}), "requests": pl.DataFrame({"m": [3]})},
    )
    both = first + second
    assert both.row_accounting["log"] == RowAccounting(rows=3, rejected=1, accepted=2)
    assert both.row_accounting["actions"].rows == 4
    assert both.rows == 7
    assert (both.counts.requests, both.latest_action, both.log_end, both.buckets) == (3, 7, 9, 3)
    assert both.shuffled_bytes == 15
    assert both.samples["events"]["n"].to_list() == [1, 2]
    assert both.samples["requests"]["m"].to_list() == [3]


def test_the_total_of_many_results_is_their_sum_one_by_one() -> None:
    parts = [
        BuildResult(
            quarantine=(FileEntry(f"quarantine/{number}.parquet", 1, "", number),),
            row_accounting={f"log{number % 2}": RowAccounting(rows=number)},
            counts=Counts(requests=number),
            latest_action=number if number % 3 else None,
            samples={"events": pl.DataFrame({"n": [number]})},
        )
        for number in range(10)
    ]
    one_by_one = BuildResult()
    for part in parts:
        one_by_one += part
    total = BuildResult.total(parts)
    assert total.samples["events"]["n"].to_list() == one_by_one.samples["events"]["n"].to_list() == list(range(10))
    assert replace(total, samples={}) == replace(one_by_one, samples={})
    assert BuildResult.total([]) == BuildResult()
