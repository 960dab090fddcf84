"""The naive reference on literal rows; every expected value was computed by hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from paths import TEST_DATA

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.validation.reference.oracle import Reference, build_reference
from longbatch.validation.reference.raw_rows import read_raw
from longbatch.validation.reference.values import generated_request_id, string_id

T = 1_700_000_000  # seconds; a time of a literal row is T plus a few

ONE_LOG = """
history_length = 3
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
request_id = "request"
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
[requests.labels]
click = "int8"
"""

TWO_LOGS = """
history_length = 3
[sources.events]
path = "events.parquet"
[sources.impressions]
path = "impressions.parquet"
[history]
source = "events"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[requests]
source = "impressions"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
"""


def with_lines(text: str, **sections: str) -> BuildSpec:
    """Parse a spec with lines added under [history], [requests] or a source."""
    for section, lines in sections.items():
        header = f"[{section}]\n" if f"[{section}]\n" in text else f"[sources.{section}]\n"
        text = text.replace(header, header + lines + "\n")
    return parse_spec(text)


def one_log(*rows: tuple[object, ...], spec: BuildSpec | None = None) -> Reference:
    """Rows are (user, request, item, seconds after T, click)."""
    names = ["user", "request", "item", "time", "click"]
    typed = dict.fromkeys(names, pl.Int64)
    moved = [(u, r, i, None if t is None else T + int(str(t)), c) for u, r, i, t, c in rows]
    return build_reference(spec or parse_spec(ONE_LOG), {"log": pl.DataFrame(moved, schema=typed, orient="row")})


def two_logs(
    events: list[tuple[object, ...]], impressions: list[tuple[object, ...]], spec: BuildSpec | None = None
) -> Reference:
    """Rows are (user, item, seconds after T)."""
    frames = {
        name: pl.DataFrame([(u, i, T + int(str(t))) for u, i, t in rows], schema=["user", "item", "time"], orient="row")
        for name, rows in (("events", events), ("impressions", impressions))
    }
    return build_reference(spec or parse_spec(TWO_LOGS), frames)


def items(reference: Reference) -> list[list[int]]:
    """Return the items of each request's history."""
    return [[event[0] for event in request.history] for request in reference.requests]


def test_history_stops_before_the_request() -> None:
    assert items(two_logs([(1, 10, 4), (1, 11, 5), (1, 12, 6)], [(1, 99, 5)])) == [[10]]


def test_a_delay_hides_events_until_it_has_passed() -> None:
    spec = with_lines(TWO_LOGS, history='delay = "2s"')
    assert items(two_logs([(1, 10, 1), (1, 11, 3), (1, 12, 4)], [(1, 99, 5), (1, 99, 6)], spec)) == [
        [10],
        [10, 11],
    ]


def test_an_event_that_arrives_late_is_visible_after_its_arrival() -> None:
    spec = with_lines(TWO_LOGS, history='arrival_time = { column = "arrival", unit = "s" }')
    rows = [(1, 10, T + 1, T + 9), (1, 11, T + 2, T + 2)]
    events = pl.DataFrame(rows, schema=["user", "item", "time", "arrival"], orient="row")
    impressions = pl.DataFrame({"user": [1, 1, 1], "item": [99, 99, 99], "time": [T + 3, T + 9, T + 10]})
    reference = build_reference(spec, {"events": events, "impressions": impressions})
    assert items(reference) == [[11], [11], [11, 10]]


def test_a_request_never_sees_its_own_events() -> None:
    """Request 7 is at T+5, the time of its earliest row; its own event at T+1 ends its history."""
    spec = with_lines(ONE_LOG, requests='where = "click >= 0"')
    rows = [(1, 3, 10, 0, None), (1, 7, 11, 1, None), (1, 3, 12, 2, None), (1, 7, 13, 5, 1), (1, 8, 14, 6, 0)]
    reference = one_log(*rows, spec=spec)
    assert [(r.request_id, r.history_end) for r in reference.requests] == [(7, 1), (8, 4)]
    assert items(reference) == [[10], [11, 12, 13]]
    assert reference.events.after_last_request == 1
    assert reference.row_accounting["log"].accepted == 5


def test_a_history_has_the_newest_events_only() -> None:
    reference = two_logs([(1, item, item) for item in (1, 2, 3, 4, 5)], [(1, 99, 5)])
    assert items(reference) == [[2, 3, 4]]
    assert (reference.events.stored_or_beyond, reference.events.after_last_request) == (4, 1)


def test_equal_times_are_ordered_by_item() -> None:
    assert items(two_logs([(1, 12, 1), (1, -3, 1), (1, 11, 1)], [(1, 99, 2)])) == [[-3, 11, 12]]


def test_a_request_has_the_earliest_time_of_its_rows_and_ordered_targets() -> None:
    reference = one_log((1, 7, 12, 5, 1), (1, 7, 11, 3, 0), (1, 7, 12, 4, 0))
    (request,) = reference.requests
    assert request.request_time == (T + 3) * 1_000_000
    assert request.targets == [
        {"item_id": 11, "click": 0},
        {"item_id": 12, "click": 0},
        {"item_id": 12, "click": 1},
    ]


def test_request_features_come_from_the_earliest_row() -> None:
    spec = parse_spec(TWO_LOGS + '[requests.features]\ntab = "int8"')
    rows = [(1, 10, T, 2), (1, 9, T, 3), (1, 9, T, 1)]
    impressions = pl.DataFrame(rows, schema=["user", "item", "time", "tab"], orient="row")
    events = impressions.drop("tab").clear()
    (request,) = build_reference(spec, {"events": events, "impressions": impressions}).requests
    assert request.features == {"tab": 1}
    assert request.request_id == generated_request_id(1, T * 1_000_000)
    assert len(request.targets) == 3


def test_a_row_is_a_duplicate_only_if_all_its_columns_are_equal() -> None:
    reference = one_log((1, 7, 10, 0, 0), (1, 7, 10, 0, 0), (1, 7, 10, 0, 1))
    accounting = reference.row_accounting["log"]
    assert (accounting.rows, accounting.duplicate, accounting.accepted) == (3, 1, 2)
    assert len(reference.requests[0].targets) == 2


def test_targets_of_a_request_id_with_two_users_are_rejected_and_events_are_not() -> None:
    spec = with_lines(ONE_LOG, requests='where = "click >= 0"')
    rows = [(1, 7, 10, 1, 0), (2, 7, 11, 1, 0), (1, 7, 12, 0, None), (1, 8, 13, 3, 0)]
    reference = one_log(*rows, spec=spec)
    assert reference.row_accounting["log"].reasons == {"conflicting_request": 2}
    assert [(r.user_id, r.request_id, r.history_end) for r in reference.requests] == [(1, 8, 1)]
    assert items(reference) == [[12]]


def test_a_rejected_row_makes_no_conflicting_request() -> None:
    reference = one_log((1, 7, 10, 1, 0), (2, 7, None, 1, 0))
    assert reference.row_accounting["log"].reasons == {"missing_item": 1}
    assert len(reference.requests) == 1


def test_every_missing_value_has_its_reason() -> None:
    empty = (None, None, None, None, None)
    accounting = one_log(empty, (1, 7, 10, 1, 0), (1, 7, 10, 1, None)).row_accounting["log"]
    assert accounting.reasons == {
        "missing_user": 1,
        "missing_request": 1,
        "missing_item": 1,
        "missing_time": 1,
        "missing_label:click": 2,
    }
    assert (accounting.rows, accounting.rejected, accounting.accepted) == (3, 2, 1)


def test_an_event_needs_no_request_id_and_no_label() -> None:
    spec = with_lines(ONE_LOG, requests='where = "click >= 0"')
    reference = one_log((1, None, 10, 0, None), (1, 7, 11, 1, 0), spec=spec)
    assert items(reference) == [[10]]
    assert not reference.row_accounting["log"].reasons


def test_times_in_the_wrong_unit_are_out_of_range() -> None:
    spec = parse_spec(ONE_LOG.replace('unit = "s"', 'unit = "ms"'))
    assert one_log((1, 7, 10, 0, 0), spec=spec).row_accounting["log"].reasons == {"time_out_of_range": 1}


def test_a_row_that_no_role_selects_is_filtered() -> None:
    both = 'where = "click = 1"'
    rows = [(1, 7, 10, 0, 1), (1, 7, 11, 0, 0), (1, 7, 12, 0, None)]
    accounting = one_log(*rows, spec=with_lines(ONE_LOG, history=both, requests=both)).row_accounting["log"]
    assert (accounting.filtered, accounting.rejected, accounting.accepted) == (2, 0, 1)


def test_lists_are_exploded_and_clicked_items_become_labels() -> None:
    explode = 'explode = { lists = ["seen"], position = "place" }'
    text = with_lines(TWO_LOGS, impressions=explode).model_dump()
    text["requests"] |= {"item_id": {"column": "seen"}, "labels": {"click": {"contained_in": "clicked"}}}
    text["requests"]["target_features"] = {"place": {"column": "place", "type": "int8"}}
    impressions = pl.DataFrame(
        {"user": [1, 2, 3], "seen": [[10, 11], [], None], "clicked": [[11, 5], [1], [1]], "time": [T, T, T]}
    )
    events = pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64, "time": pl.Int64})
    reference = build_reference(BuildSpec.model_validate(text), {"events": events, "impressions": impressions})
    assert reference.requests[0].targets == [
        {"item_id": 10, "place": 0, "click": 0},
        {"item_id": 11, "place": 1, "click": 1},
    ]
    assert (reference.row_accounting["impressions"].rows, reference.row_accounting["impressions"].empty_list) == (2, 2)


def test_a_packed_string_of_pairs_is_exploded() -> None:
    explode = 'explode.string = { column = "shown", fields = ["item", "click"], field_separator = "-" }'
    spec = with_lines(TWO_LOGS + '[requests.labels]\nclick = "int8"', impressions=explode)
    impressions = pl.DataFrame({"user": [1], "time": [T], "shown": ["8-1  9-0"]})
    events = pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64, "time": pl.Int64})
    reference = build_reference(spec, {"events": events, "impressions": impressions})
    assert reference.requests[0].targets == [{"item_id": 8, "click": 1}, {"item_id": 9, "click": 0}]


def test_parallel_lists_of_different_lengths_are_an_error() -> None:
    spec = with_lines(TWO_LOGS, events='explode.lists = ["item", "time"]')
    events = pl.DataFrame({"user": [1], "item": [[1, 2]], "time": [[T]]})
    with pytest.raises(DataError, match="have different lengths"):
        build_reference(spec, {"events": events, "impressions": events.clear()})


def test_contained_in_needs_a_list_column() -> None:
    spec = parse_spec(TWO_LOGS + '[requests.labels]\nclick = { contained_in = "clicked" }')
    frame = pl.DataFrame({"user": [1], "item": [1], "time": [T], "clicked": ["1 2"]})
    with pytest.raises(DataError, match="not a list"):
        build_reference(spec, {"events": frame, "impressions": frame})


CSV = f"user,request,item,time,click\n1,7,10,{T},1\n2,7,11,{T},0\n2,8,12,{T},\n3,9,13,{T},1\n"


def test_csv_files_are_read_as_strings_with_rows_of_shared_requests(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "log.csv.gz", "wt") as file:
        file.write(CSV)
    spec = parse_spec(ONE_LOG.replace("log.parquet", "*.csv.gz")).with_paths_from(tmp_path)
    third = {"user": "2", "request": "8", "item": "12", "time": str(T), "click": None}
    assert read_raw(spec, "log").row(2, named=True) == third
    assert read_raw(spec, "log", {1})["user"].to_list() == ["1", "2"]
    assert read_raw(spec, "log", {3})["user"].to_list() == ["3"]


def test_parquet_arrow_and_json_lines_have_the_same_requests(tmp_path: Path) -> None:
    frame = pl.read_csv(CSV.encode())
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_ipc(tmp_path / "log.arrow")
    frame.write_ndjson(tmp_path / "log.jsonl")
    references = []
    for suffix in ("parquet", "arrow", "jsonl"):
        spec = parse_spec(ONE_LOG.replace("log.parquet", f"log.{suffix}")).with_paths_from(tmp_path)
        references.append(build_reference(spec, {"log": read_raw(spec, "log")}))
    assert [r.request_id for r in references[0].requests] == [9]
    assert references[0].requests == references[1].requests == references[2].requests


def test_a_where_on_text_files_compares_numbers(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    spec = with_lines(ONE_LOG.replace("log.parquet", "log.csv"), requests=f'where = "time < {T + 1} and click = 1"')
    spec = spec.with_paths_from(tmp_path)
    reference = build_reference(spec, {"log": read_raw(spec, "log")})
    assert [r.request_id for r in reference.requests] == [7, 9]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_synthetic_time_counts_the_rows_of_each_file(suffix: str, tmp_path: Path) -> None:
    """Files are ordered by pattern and then by name; each is read once."""
    for name in ("b", "a2", "a1"):
        frame = pl.DataFrame({"user": [1, 2], "request": [7, 8], "item": [5, 6], "click": [0, 1]})
        getattr(frame, "write_ndjson" if suffix == "jsonl" else f"write_{suffix}")(tmp_path / f"{name}.{suffix}")
    if suffix == "jsonl":
        (tmp_path / "a2.jsonl").write_text("not JSON\n" + (tmp_path / "a2.jsonl").read_text())
    synthetic = 'synthetic_time = { column = "time", start = "2023-11-14T22:13:20Z", per_file = "10s" }'
    text = ONE_LOG.replace('"log.parquet"', f'["b.{suffix}", "a*.{suffix}", "*.{suffix}"]').replace(', unit = "s"', "")
    spec = with_lines(text, log=synthetic).with_paths_from(tmp_path)
    times = read_raw(spec, "log")["time"]
    assert times.dtype == pl.Datetime("us", "UTC")
    first = T * 1_000_000
    expected_times = [first + 10_000_000 * file + row for file in range(3) for row in range(2)]
    assert times.to_physical().to_list() == expected_times
    assert read_raw(spec, "log", {2})["time"].to_physical().to_list() == expected_times[1::2]
    reference = build_reference(spec, {"log": read_raw(spec, "log", {2})})
    assert [event[1] for event in reference.requests[0].timeline] == expected_times[1::2]


def test_a_path_without_files_and_a_spark_table_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file matches"):
        read_raw(parse_spec(ONE_LOG).with_paths_from(tmp_path), "log")
    spec = with_lines(ONE_LOG, log='format = "table"')
    with pytest.raises(SourceError, match="reads files only"):
        read_raw(spec.model_copy(), "log")


def test_chosen_users_have_the_same_requests_as_among_all_users() -> None:
    rows = [(user, user * 10 + n, n, n, 0) for user in (1, 2, 3) for n in range(4)]
    all_users = one_log(*rows)
    frame = pl.DataFrame(
        [(u, r, i, T + t, c) for u, r, i, t, c in rows],
        orient="row",
        schema=["user", "request", "item", "time", "click"],
    )
    some = build_reference(parse_spec(ONE_LOG), {"log": frame}, users={1, 3})
    assert some.requests == [r for r in all_users.requests if r.user_id != 2]


def test_late_events_of_a_real_log_are_invisible_until_they_arrive() -> None:
    text = ONE_LOG.replace('"log.parquet"', f'"{TEST_DATA}/git_activity/rails_slice.tsv.gz"\nquote = ""')
    for name, column in (("user", "user_id"), ("item", "path"), ("request", "request_id")):
        text = text.replace(f'"{name}"', f'{{ column = "{column}", type = "string" }}')
    text = text.replace('"time"', '"author_time"').partition("[requests.labels]")[0]
    spec = with_lines(text, history='arrival_time = { column = "commit_time", unit = "s" }')
    raw = read_raw(spec, "log", {string_id("2433d76b0d5f")})
    reference = build_reference(spec, {"log": raw}, {string_id("2433d76b0d5f")})
    seconds = raw.filter(pl.col("user_id") == "2433d76b0d5f")
    for request in reference.requests:
        second = request.request_time // 1_000_000
        seen = seconds.filter(
            (pl.col("author_time").cast(pl.Int64) < second) & (pl.col("commit_time").cast(pl.Int64) < second)
        )
        assert request.history_end <= seen.height
    assert len(reference.requests) == seconds["request_id"].n_unique()
