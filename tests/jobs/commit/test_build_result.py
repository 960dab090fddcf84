"""Results of tasks add up field by field."""

from __future__ import annotations

from dataclasses import fields

import polars as pl

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.schemas.accounting import Counts, RowAccounting


def test_every_field_has_a_rule_of_addition() -> None:
    assert all("add" in field.metadata for field in fields(BuildResult))


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
