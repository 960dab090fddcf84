"""Duplicates, conflicts and roles of the rows of one log that feeds the history and the requests."""

from __future__ import annotations

import polars as pl
import pytest

from longbatch.pipelines.canonicalize import canonicalize
from longbatch.pipelines.valid_rows import VISIBLE_TIME, role_rows, valid_rows
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec, Role

COLUMNS = {"source": "log", "user_id": "user", "item_id": "item", "request_id": "request"}
SPEC = BuildSpec.model_validate(
    {
        "sources": {"log": {"path": "log.parquet"}},
        "history": {
            **COLUMNS,
            "event_time": {"column": "time", "unit": "us"},
            "arrival_time": {"column": "arrival", "unit": "us"},
            "where": "played",
        },
        "requests": {**COLUMNS, "request_time": {"column": "time", "unit": "us"}, "where": "shown"},
    }
)
T = 1_700_000_000_000_000
# Row 1 repeats row 0; row 2 differs from row 0 in its arrival only, and row 3 in its roles only.
LOG = pl.DataFrame(
    {
        "user": [7, 7, 7, 7, 7],
        "item": [1, 1, 1, 1, 2],
        "request": [4, 4, 4, 4, 5],
        "time": [T, T, T, T, T - 5],
        "arrival": [T + 2, T + 2, T + 1, T + 2, T],
        "played": [True, True, True, True, True],
        "shown": [True, True, True, False, False],
    }
)
SCHEMA = source_schema(SPEC, "log")


def test_rows_that_differ_in_a_role_or_in_the_arrival_are_not_duplicates() -> None:
    valid, accounting = valid_rows(SPEC, SCHEMA, canonicalize(LOG, SPEC, "log").rows, None)
    assert len(valid.order) == 4
    assert (accounting.duplicate, accounting.rejected, accounting.accepted) == (1, 0, -1)


def test_events_are_in_the_order_of_visible_time() -> None:
    valid, _ = valid_rows(SPEC, SCHEMA, canonicalize(LOG, SPEC, "log").rows, None)
    events = role_rows(SPEC, {"log": valid}, "history")
    assert (events[VISIBLE_TIME] - T).to_list() == [0, 1, 2, 2]
    assert events["item_id"].to_list() == [2, 1, 1, 1]


def test_a_conflict_rejects_targets_and_keeps_events_that_only_name_the_request() -> None:
    rows = canonicalize(LOG, SPEC, "log").rows
    valid, accounting = valid_rows(SPEC, SCHEMA, rows, pl.Series([4]))
    assert (accounting.duplicate, accounting.rejected, accounting.accepted) == (0, 3, -3)
    assert role_rows(SPEC, {"log": valid}, "requests").height == 0
    assert role_rows(SPEC, {"log": valid}, "history")["request_id"].to_list() == [5, 4]


@pytest.mark.parametrize(("role", "count"), [("history", 4), ("requests", 2), ("actions", 0)])
def test_a_role_has_only_the_rows_that_it_selects(role: Role, count: int) -> None:
    valid, _ = valid_rows(SPEC, SCHEMA, canonicalize(LOG, SPEC, "log").rows, None)
    assert valid.has_role(role).sum() == count
