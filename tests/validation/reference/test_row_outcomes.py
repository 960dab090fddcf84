"""The naive reference: outcomes of literal rows with declared values, and of rows that are actions."""

from __future__ import annotations

import math

import polars as pl
import pytest

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.validation.reference.oracle import Reference, build_reference
from longbatch.validation.reference.values import string_id

T = 1_700_000_000_000_000  # microseconds; a time of a literal row is T plus a few

TARGETS = """
[sources.events]
path = "events.parquet"
[sources.shown]
path = "shown.parquet"
[history]
source = "events"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "us" }
[requests]
source = "shown"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "us" }
"""

ONE_LOG = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
where = "kind IN ('event', 'all')"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "us" }
[requests]
source = "log"
where = "kind IN ('target', 'all')"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "us" }
[requests.labels]
watched = { aggregate = "sum", column = "ms", within = "1s", where = "ms > 0 OR ms < -4", min = -5, max = 100 }
bought = { aggregate = "any", within = "1s", where = "note = 'buy'" }
[actions]
source = "log"
where = "kind IN ('action', 'all')"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "us" }
until = 2024-01-01T00:00:00Z
"""


def with_tab(feature: str, *values: object) -> Reference:
    """Build one request for each value of a request feature `tab`."""
    rows = {"user": 1, "item": 2, "time": [T + index for index, _ in enumerate(values)], "tab": list(values)}
    frame = pl.DataFrame(rows, strict=False)
    spec = parse_spec(TARGETS + f"[requests.features]\ntab = {feature}")
    return build_reference(spec, {"events": frame.drop("tab").clear(), "shown": frame})


def accepted_tabs(reference: Reference) -> list[object]:
    return [request.features["tab"] for request in reference.requests]


def one_log(*rows: tuple[object, ...], spec: str = ONE_LOG) -> Reference:
    """Rows are (kind, user, item, microseconds after T, ms, note)."""
    names = ["kind", "user", "item", "time", "ms", "note"]
    moved = [(kind, user, item, T + int(str(time)), ms, note) for kind, user, item, time, ms, note in rows]
    types = {"kind": pl.String, "user": pl.Int64, "item": pl.Int64, "time": pl.Int64, "ms": pl.Int64, "note": pl.String}
    frame = pl.DataFrame(moved, schema={name: types[name] for name in names}, orient="row")
    return build_reference(parse_spec(spec), {"log": frame})


# Declared ranges and values


def test_both_ends_of_a_range_and_null_are_allowed() -> None:
    reference = with_tab('{ type = "int8", min = -1, max = 3 }', -2, -1, 3, 4, None)
    assert accepted_tabs(reference) == [-1, 3, None]
    assert reference.row_accounting["shown"].reasons == {"out_of_range:tab": 2}


def test_a_range_may_have_one_bound_only() -> None:
    assert accepted_tabs(with_tab('{ type = "int8", min = 2 }', 1, 2, 127)) == [2, 127]
    assert accepted_tabs(with_tab('{ type = "float64", max = 2 }', -math.inf, 2.0, 2.5)) == [-math.inf, 2.0]


def test_nan_is_out_of_any_range_and_allowed_without_one() -> None:
    assert with_tab('{ type = "float64", min = 0 }', math.nan, 1.0).row_accounting["shown"].reasons == {
        "out_of_range:tab": 1
    }
    assert with_tab('{ type = "float64" }', math.nan, 1.0).row_accounting["shown"].rejected == 0


def test_a_float32_bound_allows_the_nearest_float32() -> None:
    assert accepted_tabs(with_tab('{ type = "float32", min = 0.1, max = 0.3 }', 0.1, 0.3, 0.30001)) == [
        pytest.approx(0.1),
        pytest.approx(0.3),
    ]
    assert len(accepted_tabs(with_tab('{ type = "float32", max = 1e300 }', math.inf, 1.0))) == 1


def test_a_value_outside_the_declared_set_is_unknown() -> None:
    reference = with_tab('{ type = "int8", values = [1, 3] }', 1, 2, 3)
    assert accepted_tabs(reference) == [1, 3]
    assert reference.row_accounting["shown"].reasons == {"unknown:tab": 1}


def test_strings_are_compared_before_they_are_hashed() -> None:
    reference = with_tab('{ type = "id", values = ["home", "17"] }', "home", "Home", "17", None)
    assert accepted_tabs(reference) == [string_id("home"), string_id("17"), None]
    assert reference.row_accounting["shown"].reasons == {"unknown:tab": 1}
    assert accepted_tabs(with_tab('{ type = "string", values = ["", "a"] }', "", "a", "b")) == ["", "a"]


def test_a_declared_number_allows_the_same_id_as_a_string() -> None:
    assert accepted_tabs(with_tab('{ type = "id", values = [17] }', "17", "18")) == [string_id("17")]
    assert accepted_tabs(with_tab('{ type = "id", values = [17] }', 17, 18)) == [17]


def test_a_value_may_be_out_of_range_and_unknown_but_an_unparsable_one_has_one_reason() -> None:
    reference = with_tab('{ type = "int8", max = 5, values = [1, 9] }', "9", "1", "7", "x", "200")
    assert reference.row_accounting["shown"].reasons == {"out_of_range:tab": 2, "unknown:tab": 1, "unparsable:tab": 2}
    assert reference.row_accounting["shown"].rejected == 4


def test_a_default_may_be_outside_the_declared_values() -> None:
    assert accepted_tabs(with_tab('{ type = "int8", default = -1, min = 0 }', None, 0)) == [-1, 0]
    assert accepted_tabs(with_tab('{ type = "id", default = "none", values = ["a"] }', None, "a")) == [
        string_id("none"),
        string_id("a"),
    ]


def test_a_label_may_have_a_range_and_a_missing_one_has_one_reason() -> None:
    spec = parse_spec(TARGETS + '[requests.labels]\nstars = { type = "int8", min = 1, max = 5 }')
    frame = pl.DataFrame({"user": 1, "item": 2, "time": [T, T + 1, T + 2], "stars": [0, 5, None]})
    accounting = build_reference(spec, {"events": frame.drop("stars").clear(), "shown": frame}).row_accounting["shown"]
    assert accounting.reasons == {"missing_label:stars": 1, "out_of_range:stars": 1}


def test_a_value_is_checked_only_if_a_role_of_the_row_needs_the_column() -> None:
    spec = ONE_LOG + '[history.features]\nms = { type = "int8", max = 9 }'
    reference = one_log(("target", 1, 5, 0, 50, ""), ("event", 1, 5, 0, 50, ""), ("event", 1, 5, 0, 9, ""), spec=spec)
    assert reference.row_accounting["log"].reasons == {"out_of_range:ms": 1}
    assert (len(reference.requests), reference.events.after_last_request) == (1, 1)


def test_unparsable_values_that_no_role_needs_count_as_missing_for_duplicates() -> None:
    """The targets differ only in a history feature: null and 300 count as the default 1; 50 and 2 count as they are."""
    text = ONE_LOG.replace('where = "ms > 0 OR ms < -4", min = -5, max = 100', 'where = "false"')
    text += '[history.features]\nms = { type = "int8", max = 9, default = 1 }'
    rows = [("target", 1, 5, 0, ms, "") for ms in (None, 50, 300, 1, 2)]
    accounting = one_log(*rows, spec=text).row_accounting["log"]
    assert (accounting.rejected, accounting.duplicate, accounting.accepted) == (0, 2, 3)


# Actions


def test_a_row_with_three_roles_is_event_target_and_action() -> None:
    reference = one_log(("all", 1, 5, 0, 70, "buy"), ("target", 1, 5, 1, 0, ""))
    accounting = reference.row_accounting["log"]
    assert accounting == RowAccounting(rows=2, accepted=2)
    first, second = reference.requests
    assert first.targets == [{"item_id": 5, "watched": 70, "bought": 1}]
    assert first.history == []
    assert second.targets == [{"item_id": 5, "watched": 0, "bought": 0}]
    assert second.history == [(5, T)]


def test_an_action_needs_user_item_and_time() -> None:
    text = ONE_LOG.partition("[actions]")[0].replace("ms > 0 OR ms < -4", "true") + (
        '[sources.acts]\npath = "acts.parquet"\n[actions]\nsource = "acts"\nuser_id = "user"\nitem_id = "item"\n'
        'event_time = { column = "time", unit = "us" }'
    )
    acts = pl.DataFrame(
        [(None, 1, T, 1, ""), (1, None, T, 1, ""), (1, 1, None, 1, ""), (1, 1, 5, 1, ""), (1, 1, T, None, None)],
        schema=["user", "item", "time", "ms", "note"],
        orient="row",
    )
    log = acts.with_columns(kind=pl.lit("event")).clear()
    accounting = build_reference(parse_spec(text), {"acts": acts, "log": log}).row_accounting["acts"]
    assert accounting.reasons == {"missing_item": 1, "missing_time": 1, "missing_user": 1, "time_out_of_range": 1}
    assert (accounting.rows, accounting.rejected, accounting.accepted) == (5, 4, 1)


@pytest.mark.parametrize(("ms", "reasons"), [(-5, {}), (-4, {}), (100, {}), (101, {"out_of_range:ms": 1})])
def test_the_value_of_an_action_is_checked_if_the_label_selects_it(ms: int, reasons: dict[str, int]) -> None:
    """The label selects -5 and 101; it selects neither -4 nor a row that is not an action."""
    assert one_log(("action", 1, 5, 0, ms, "")).row_accounting["log"].reasons == reasons
    assert one_log(("event", 1, 5, 0, ms, "")).row_accounting["log"].reasons == {}


def test_an_unparsable_value_is_a_reason_only_if_the_label_selects_the_action() -> None:
    text = ONE_LOG.replace("ms > 0 OR ms < -4", "note = 'watch'")
    rows = [("action", 1, 5, 0, 2**40, "watch"), ("action", 1, 5, 1, 2**40, "skip"), ("event", 1, 5, 1, 2**40, "watch")]
    narrow = text.replace("min = -5, max = 100", 'type = "int32"')
    accounting = one_log(*rows, spec=narrow).row_accounting["log"]
    assert (accounting.reasons, accounting.accepted) == ({"unparsable:ms": 1}, 2)


def test_actions_are_duplicates_only_if_all_columns_and_roles_are_equal() -> None:
    rows = [("action", 1, 5, 0, 7, "buy"), ("action", 1, 5, 0, 7, "buy"), ("action", 1, 5, 0, 8, "buy")]
    accounting = one_log(*rows, ("all", 1, 5, 0, 7, "buy")).row_accounting["log"]
    assert (accounting.duplicate, accounting.accepted) == (1, 3)
    ignored = [("action", 1, 5, 0, -1, "a"), ("action", 1, 5, 0, -2, "b")]  # no label's `where` selects them
    assert one_log(*ignored).row_accounting["log"].duplicate == 1


def test_the_where_of_a_label_compares_numbers_in_text_files() -> None:
    text = ONE_LOG.replace("log.parquet", "log.csv")
    rows = [("target", 1, 5, 0, None, ""), ("action", 1, 5, 9, 10, ""), ("action", 1, 5, 9, -3, "")]
    names = ["kind", "user", "item", "time", "ms", "note"]
    strings = [
        [None if value is None else str(value) for value in (k, u, i, T + t, *rest)] for k, u, i, t, *rest in rows
    ]
    log = pl.DataFrame(strings, schema=dict.fromkeys(names, pl.String), orient="row")
    (request,) = build_reference(parse_spec(text), {"log": log}).requests
    assert request.targets == [{"item_id": 5, "watched": 10, "bought": 0}]
