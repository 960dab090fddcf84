"""One chunk of raw rows: every row gets one outcome, with its reasons."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.pipelines.canonicalize import (
    Canonical,
    canonicalize,
    conflicting_requests,
    needed_columns,
)
from longbatch.pipelines.row_filters import where_columns
from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec

T = 1_700_000_000
Row = dict[str, Any]


def spec_of(
    history: Row | None = None, requests: Row | None = None, source: Row | None = None, **others: Any
) -> BuildSpec:
    """A spec of one log for both roles, with keys added."""
    both = {"source": "log", "user_id": "user", "item_id": "item"}
    time = {"column": "time", "unit": "s"}
    return BuildSpec.model_validate(
        {
            "sources": {"log": {"path": "log.parquet", **(source or {})}},
            "history": {**both, "event_time": time, **(history or {})},
            "requests": {**both, "request_time": time, "request_id": "request", **(requests or {})},
            **others,
        }
    )


ROW: Row = {"user": 1, "item": 2, "time": T, "request": 3}


def log(*rows: Row, **types: Any) -> pl.DataFrame:
    """Rows of a log, each ROW with some values changed."""
    filled = [{**ROW, **row} for row in rows]
    return pl.DataFrame(filled, schema_overrides=types, infer_schema_length=None)


def reasons(canonical: Canonical) -> list[tuple[int, list[str]]]:
    """(row, reasons) of the rejected rows."""
    return [(row["_row"], row["_reasons"]) for row in canonical.rejected.to_dicts()]


def test_accepted_rows_have_every_canonical_column_and_their_roles() -> None:
    spec = spec_of(history={"where": "item > 1"}, requests={"where": "item < 3", "labels": {"click": "int8"}})
    rows = canonicalize(
        log({"item": 1, "click": 0}, {"item": 2, "click": 1}, {"item": 3, "click": 1}), spec, "log"
    ).rows
    assert rows["item#id(int64)"].to_list() == [1, 2, 3]
    assert rows["time#time(s,None,UTC)"].to_list() == [T * 1_000_000] * 3
    assert rows["click#int8"].to_list() == [0, 1, 1]
    assert rows["in_history"].to_list() == [False, True, True]
    assert rows["is_target"].to_list() == [True, True, False]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"user": None}, "missing_user"),
        ({"item": None}, "missing_item"),
        ({"request": None}, "missing_request"),
        ({"time": None}, "missing_time"),
        ({"time": 5}, "time_out_of_range"),
        ({"click": None}, "missing_label:click"),
        ({"click": 300}, "unparsable:click"),
        ({"tab": "x"}, "unparsable:tab"),
    ],
)
def test_each_fault_has_its_reason(row: Row, reason: str) -> None:
    features = {"features": {"tab": "int8"}, "labels": {"click": "int8"}}
    raw = log({"click": 1, "tab": "1"}, {"click": 1, "tab": "1", **row})
    canonical = canonicalize(raw, spec_of(requests=features), "log")
    assert reasons(canonical) == [(1, [reason])]
    assert (canonical.accounting.rows, canonical.accounting.accepted, canonical.accounting.rejected) == (2, 1, 1)
    assert canonical.accounting.reasons == {reason: 1}


def test_a_row_may_have_many_reasons_and_is_rejected_once() -> None:
    canonical = canonicalize(log({}, {"user": None, "item": None, "time": 1}), spec_of(), "log")
    assert reasons(canonical) == [(1, ["missing_user", "time_out_of_range", "missing_item"])]
    assert canonical.accounting.rejected == 1
    assert canonical.accounting.reasons == {"missing_item": 1, "missing_user": 1, "time_out_of_range": 1}


def test_a_fault_counts_only_in_a_role_that_selects_the_row() -> None:
    """A history row needs no label, a target no event feature, a filtered row nothing."""
    spec = spec_of(
        history={"where": "row_type = 'event'", "features": {"tab": "int8"}},
        requests={"where": "row_type = 'target'", "labels": {"click": "int8"}},
    )
    raw = log(
        {"row_type": "event", "tab": "1", "click": None, "request": None},
        {"row_type": "target", "tab": "x", "click": 1},
        {"row_type": "other", "tab": "x", "click": None, "user": None},
        {"row_type": None, "tab": "1", "click": 1},
        {"row_type": "event", "tab": "x", "click": 1},
        {"row_type": "target", "tab": "1", "click": None},
    )
    canonical = canonicalize(raw, spec, "log")
    assert reasons(canonical) == [(4, ["unparsable:tab"]), (5, ["missing_label:click"])]
    accounting = canonical.accounting
    assert (accounting.rows, accounting.filtered, accounting.rejected, accounting.accepted) == (6, 2, 2, 2)


def test_the_request_id_of_an_event_may_be_missing() -> None:
    spec = spec_of(history={"request_id": "request"}, requests={"where": "item = 9"})
    assert canonicalize(log({"request": None}), spec, "log").accounting.accepted == 1


def test_rejected_rows_keep_their_raw_columns_and_row_number() -> None:
    canonical = canonicalize(log({}, {"user": None, "more": "as it came"}), spec_of(), "log")
    assert canonical.rejected.to_dicts() == [
        {"_row": 1, **ROW, "user": None, "more": "as it came", "_reasons": ["missing_user"]}
    ]


def test_an_empty_chunk_is_canonicalized() -> None:
    canonical = canonicalize(log({}).head(0), spec_of(), "log")
    assert (canonical.accounting.rows, canonical.rows.height, canonical.rejected.height) == (0, 0, 0)
    assert canonical.rejected.schema["_reasons"] == pl.List(pl.String)


def test_string_ids_are_hashed_and_added_to_the_vocabulary() -> None:
    ids = {"user_id": {"column": "user", "type": "string"}, "item_id": {"column": "item", "type": "string"}}
    spec = spec_of(history=ids, requests={**ids, "features": {"city": "id"}})
    raw = log(
        {"user": "ann", "item": "x", "city": "Rome"},
        {"user": "ann", "item": "y", "city": None},
        {"user": None, "item": "z", "city": "Oslo"},
    )
    canonical = canonicalize(raw, spec, "log")
    assert canonical.rows["user#id(string)"].to_list() == hash_string(pl.Series(["ann", "ann"])).to_list()
    vocabulary = dict(canonical.vocabulary.rows())
    assert sorted(vocabulary.values()) == ["Rome", "ann", "x", "y"], "the vocabulary of rejected rows are not kept"
    assert hash_string(pl.Series(list(vocabulary.values()))).to_list() == list(vocabulary)
    assert canonical.rows["city#id"].to_list() == [hash_string(pl.Series(["Rome"]))[0], None]


def test_the_default_of_a_string_id_is_hashed_too() -> None:
    spec = spec_of(requests={"features": {"city": {"column": "city", "type": "id", "default": "?"}}})
    canonical = canonicalize(log({"city": None}, {"city": "Rome"}), spec, "log")
    assert canonical.rows["city#id default='?'"].to_list() == hash_string(pl.Series(["?", "Rome"])).to_list()


def test_owners_are_the_pairs_of_request_and_user_among_the_targets() -> None:
    raw = log({}, {}, {"user": 2}, {"user": 7, "item": 5})
    request_users = canonicalize(raw, spec_of(requests={"where": "item < 5"}), "log").request_users
    assert request_users is not None
    assert sorted(request_users.rows()) == [(3, 1), (3, 2)]
    without = spec_of().model_dump()
    del without["requests"]["request_id"]
    assert canonicalize(raw, BuildSpec.model_validate(without), "log").request_users is None


def test_ids_of_several_users_conflict() -> None:
    request_users = pl.DataFrame({"request_id": [1, 1, 1, 2, 3, 3], "user_id": [5, 6, 5, 5, 7, 7]})
    assert conflicting_requests(request_users).to_list() == [1]


def test_rows_of_known_conflicts_are_rejected_where_the_requests_select_them() -> None:
    raw = log({"request": 1}, {"request": 1, "item": 9}, {"request": 2})
    canonical = canonicalize(raw, spec_of(requests={"where": "item < 5"}), "log", conflicts=pl.Series([1, 4]))
    assert reasons(canonical) == [(0, ["conflicting_request"])]


def exploded(source: Row, raw: pl.DataFrame, features: Row | None = None, **requests: Any) -> Canonical:
    """Canonicalize an exploded request log beside an empty history log."""
    spec = BuildSpec.model_validate(
        {
            "sources": {"log": {"path": "h.parquet"}, "shown": {"path": "log.parquet", "explode": source}},
            "history": {
                "source": "log",
                "user_id": "user",
                "item_id": "item",
                "event_time": {"column": "time", "unit": "s"},
            },
            "requests": {
                "source": "shown",
                "user_id": "user",
                "item_id": "item",
                "request_time": {"column": "time", "unit": "s"},
                "target_features": features or {},
                **requests,
            },
        }
    )
    return canonicalize(raw, spec, "shown")


def test_lists_become_a_row_per_element() -> None:
    raw = log(
        {"item": [5, 6], "price": [0.5, 1.5]},
        {"item": [], "price": []},
        {"item": None, "price": None},
        {"item": [7], "price": [2.5]},
    )
    canonical = exploded({"lists": ["item", "price"], "position": "rank"}, raw, {"price": "float32", "rank": "int16"})
    assert canonical.rows["item#id(int64)"].to_list() == [5, 6, 7]
    assert canonical.rows["price#float32"].to_list() == [0.5, 1.5, 2.5]
    assert canonical.rows["rank#int16"].to_list() == [0, 1, 0]
    assert (canonical.accounting.rows, canonical.accounting.empty_list) == (3, 2)


def test_a_rejected_element_keeps_the_row_of_the_file_it_came_from() -> None:
    canonical = exploded({"lists": "item"}, log({"item": [5]}, {"item": [6, None]}))
    assert reasons(canonical) == [(1, ["missing_item"])]


def test_a_string_list_becomes_a_row_per_part() -> None:
    """MIND's `N1-1 N2-0`: items and whether they were clicked."""
    raw = log({"shown": "N1-1 N2-0"}, {"shown": " N3-1  "}, {"shown": ""}, {"shown": None}, {"shown": "N4"}).drop(
        "item"
    )
    string_list = {"column": "shown", "separator": " ", "fields": ["item", "click"], "field_separator": "-"}
    canonical = exploded(
        {"string": string_list, "position": "rank"},
        raw,
        {"rank": "int16"},
        item_id={"column": "item", "type": "string"},
        labels={"click": "int8"},
    )
    assert canonical.rows["item#id(string)"].to_list() == hash_string(pl.Series(["N1", "N2", "N3"])).to_list()
    assert canonical.rows["click#int8"].to_list() == [1, 0, 1]
    assert canonical.rows["rank#int16"].to_list() == [0, 1, 0]
    assert reasons(canonical) == [(4, ["missing_label:click"])]
    assert (canonical.accounting.rows, canonical.accounting.empty_list) == (4, 2)


def test_a_string_list_with_one_field_gives_the_parts_themselves() -> None:
    canonical = exploded(
        {"string": {"column": "shown", "separator": ",", "fields": ["item"]}}, log({"shown": "5,6"}).drop("item")
    )
    assert canonical.rows["item#id(int64)"].to_list() == [5, 6]


def test_a_label_can_search_for_the_item_in_another_list() -> None:
    raw = log({"item": [5, 6], "clicked": [6]}, {"item": [5], "clicked": []}, {"item": [5], "clicked": None})
    canonical = exploded({"lists": "item"}, raw, labels={"click": {"contained_in": "clicked"}})
    assert canonical.rows["#in(clicked,int8)"].to_list() == [0, 1, 0]
    assert reasons(canonical) == [(2, ["missing_label:click"])]


@pytest.mark.parametrize(
    ("explode", "rows", "message"),
    [
        (
            {"lists": ["item", "price"]},
            {"item": [[1, 2]], "price": [[1]]},
            r"the lists \['item', 'price'\] of a row differ in length",
        ),
        ({"lists": "item"}, {"item": [1]}, r"explode\.lists names 'item', which has type Int64, not List"),
        ({"lists": "items"}, {"item": [[1]]}, r"explode names 'items', but the source's columns are user, item, time"),
        (
            {"string": {"column": "shown", "fields": ["item"]}},
            {},
            r"explode names 'shown', but the source's columns are",
        ),
        (
            {"string": {"column": "item", "fields": ["item"]}},
            {"item": [5]},
            r"explode\.string names 'item', which has type Int64, not String",
        ),
    ],
)
def test_an_explode_that_does_not_fit_is_refused(explode: Row, rows: Row, message: str) -> None:
    raw = pl.DataFrame({"user": [1], "item": [1], "time": [T], **rows})
    with pytest.raises(SourceError, match=f"source shown: {message}"):
        exploded(explode, raw)


def test_where_compares_numbers_in_string_columns() -> None:
    """All columns of a CSV file are strings; `where` sees them as the spec types them."""
    spec = spec_of(
        source={"path": "log.csv"},
        history={"where": "tab > 9", "features": {"tab": "int32"}},
        requests={"where": f"time > {T} and word = '10' and flag", "features": {"word": "string", "flag": "bool"}},
    )
    row = {"user": "1", "item": "2", "request": "3", "time": str(T), "tab": "10", "word": "10", "flag": "true"}
    raw = log(row, {**row, "tab": "9", "time": str(T + 1)}, {**row, "tab": "x", "flag": "no"}, {**row, "tab": None})
    rows = canonicalize(raw, spec, "log").rows
    assert rows["in_history"].to_list() == [True, False]
    assert rows["is_target"].to_list() == [False, True]


def test_where_sees_columns_that_are_not_mapped() -> None:
    spec = spec_of(
        history={"where": "row_type = 'a' or coalesce(dwell, 0) > 5"}, requests={"where": "row_type in ('b', 'c')"}
    )
    raw = log({"row_type": "a", "dwell": 1}, {"row_type": "b", "dwell": 9}, {"row_type": None, "dwell": None})
    canonical = canonicalize(raw, spec, "log")
    assert canonical.rows["in_history"].to_list() == [True, True]
    assert canonical.rows["is_target"].to_list() == [False, True]
    assert where_columns(source_schema(spec, "log")) == ["row_type", "dwell"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("item >", r"requests\.where is not an expression of Polars SQL: 'item >'"),
        ("row_type = 1", r"requests\.where cannot be computed on source log: 'row_type = 1'.*row_type"),
        ("item", r"requests\.where cannot be computed on source log: 'item'"),
        (
            "item = MAX(item)",
            r"requests\.where looks at other rows: 'item = MAX\(item\)'\. Logs are read in chunks, so a filter may",
        ),
        ("COUNT(*) > 2", r"requests\.where looks at other rows"),
        ("ROW_NUMBER() OVER (ORDER BY item) = 1", r"requests\.where looks at other rows"),
    ],
)
def test_a_where_that_cannot_be_computed_is_refused(where: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        canonicalize(log({}), spec_of(requests={"where": where}), "log")


def test_a_column_with_a_reserved_name_is_refused() -> None:
    message = r"source log: the column name '_reasons' is reserved for quarantine files. Rename the column in the log."
    with pytest.raises(SourceError, match=message):
        canonicalize(log({"_reasons": 1}), spec_of(history={"features": {"_reasons": "int8"}}), "log")


def test_a_missing_column_is_named_with_its_source() -> None:
    with pytest.raises(
        SourceError, match=r"source log: column 'click' is not in the source; its columns are .*user, item"
    ):
        canonicalize(log({}), spec_of(requests={"labels": {"click": "int8"}}), "log")


def test_only_needed_columns_are_read() -> None:
    spec = spec_of(history={"where": "dwell > 5"}, requests={"labels": {"click": {"contained_in": "clicked"}}})
    assert needed_columns(spec, "log") == ["user", "time", "item", "request", "clicked", "dwell"]


def test_an_exploded_source_reads_the_lists_and_not_their_fields() -> None:
    string_list = {"column": "shown", "fields": ["item", "click"], "field_separator": "-"}
    spec = spec_of(
        source={"explode": {"string": string_list, "position": "rank"}}, requests={"features": {"rank": "int8"}}
    )
    assert needed_columns(spec, "log") == ["user", "time", "request", "shown"]
    lists = spec_of(source={"explode": {"lists": ["item", "extra"]}})
    assert needed_columns(lists, "log") == ["user", "time", "item", "request", "extra"]
