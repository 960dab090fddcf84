"""Raw rows as the checks of a build read them: chunk by chunk, some users, a census, the end of the actions."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.validation.audit.structure import Users
from longbatch.validation.audit.user_sampling import draw_users, everybody, group_users
from longbatch.validation.reference import raw_files as files
from longbatch.validation.reference import user_counts as census
from longbatch.validation.reference.log_end import log_end
from longbatch.validation.reference.raw_rows import needed_columns, read_raw, read_rows
from longbatch.validation.reference.user_counts import take_census
from longbatch.validation.reference.values import string_id

T = 1_700_000_000
SPEC = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[requests]
source = "log"
where = "shown = 1"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
features = { shown = "int8" }
"""
ACTIONS = """
labels = { click = { aggregate = "any", within = "5s", where = "kind = 'tap'" } }
[actions]
source = "acts"
where = "kind != 'none'"
user_id = "user"
item_id = "item"
event_time = { column = "at", unit = "s" }
[sources.acts]
path = "acts.parquet"
"""
LOG = pl.DataFrame(
    [  # user, item, time, request, shown, unused
        (1, 10, T, 7, 1, "a"),
        (2, 11, T + 1, 7, 1, "b"),
        (2, 12, T + 2, 8, 0, "c"),
        (3, 13, T + 3, 9, 1, "d"),
        (None, 14, T + 4, 9, 1, "e"),
    ],
    schema=["user", "item", "time", "request", "shown", "unused"],
    orient="row",
)


def in_format(folder: Path, suffix: str, text: str = SPEC, log: pl.DataFrame = LOG) -> BuildSpec:
    """Write a log as a file of that format, and return its spec."""
    path = folder / f"log.{suffix}"
    if suffix == "parquet":
        log.write_parquet(path)
    elif suffix == "arrow":
        log.write_ipc(path)
    elif suffix == "csv":
        log.write_csv(path)
    else:
        data = log.write_csv(separator="\t") if "tsv" in suffix else log.write_ndjson()
        path.write_bytes(gzip.compress(data.encode()) if suffix.endswith("gz") else data.encode())
    return parse_spec(text.replace("log.parquet", f"log.{suffix}")).with_paths_from(folder)


FORMATS = ("parquet", "arrow", "csv", "tsv.gz", "jsonl", "jsonl.gz")


# Some users


@pytest.mark.parametrize("suffix", FORMATS)
def test_users_come_with_those_they_share_a_request_with_whatever_the_format(tmp_path: Path, suffix: str) -> None:
    spec = in_format(tmp_path, suffix)
    found = read_raw(spec, "log", {1})
    assert found["item"].cast(pl.Int64).to_list() == [10, 11]
    assert sorted(found.columns) == ["item", "request", "shown", "time", "user"]
    assert read_raw(spec, "log", {3})["item"].cast(pl.Int64).to_list() == [13, 14]
    assert read_raw(spec, "log", ()).height == 0
    assert read_raw(spec, "log").height == 5


@pytest.mark.parametrize("suffix", FORMATS)
def test_users_with_text_ids_are_found_by_their_hash(tmp_path: Path, suffix: str) -> None:
    text = SPEC.replace('user_id = "user"', 'user_id = { column = "user", type = "string" }')
    spec = in_format(tmp_path, suffix, text, LOG.with_columns(pl.format("u{}", "user").alias("user")))
    assert read_raw(spec, "log", {string_id("u3")})["user"].to_list() == ["u3", None]


@pytest.mark.parametrize("user", ["7", "007", "+7", "7.0"])
def test_every_way_to_write_an_integer_id_is_found(tmp_path: Path, user: str) -> None:
    log = LOG.with_columns(pl.col("user").cast(pl.String).replace("2", user))
    assert read_raw(in_format(tmp_path, "csv", log=log), "log", {7})["item"].to_list() == ["10", "11", "12"]


def test_integer_ids_may_be_whole_floats(tmp_path: Path) -> None:
    spec = in_format(tmp_path, "parquet", log=LOG.with_columns(pl.col("user").cast(pl.Float64) + 1e15))
    assert read_raw(spec, "log", {10**15 + 3})["item"].to_list() == [13, 14]


def test_text_of_binary_and_dictionary_columns_is_text(tmp_path: Path) -> None:
    text = SPEC.replace('"user"', '{ column = "user", type = "string" }')
    users = pl.col("user").cast(pl.String)
    spec = in_format(
        tmp_path,
        "parquet",
        text,
        LOG.with_columns(users.cast(pl.Binary), item=pl.col("item").cast(pl.String).cast(pl.Categorical)),
    )
    assert read_raw(spec, "log", {string_id("3")})["item"].to_list() == ["13", "14"]


def test_a_source_whose_ids_stand_in_lists_is_read_whole(tmp_path: Path) -> None:
    text = SPEC.replace('path = "log.parquet"', 'path = "log.parquet"\nexplode.lists = ["request", "item"]')
    lists = LOG.group_by("user", "shown", "time", maintain_order=True).agg("request", "item")
    spec = in_format(tmp_path, "parquet", text, lists)
    assert read_raw(spec, "log", {1}).height == 5
    assert take_census(spec, "log")["rows"].sum() == 4


def test_files_may_be_named_by_globs_lists_and_uris(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "more.parquet"):
        LOG.with_columns(unused=pl.lit(name)).write_parquet(tmp_path / name)
    for path, users in (
        (f'"{tmp_path}/?.parquet"', 10),
        (f'["file://{tmp_path}/a.parquet"]', 5),
        (f'"file://{tmp_path}/*.parquet"', 15),
    ):
        assert read_raw(parse_spec(SPEC.replace('"log.parquet"', path)), "log").height == users


def test_files_that_differ_in_types_are_read_together(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "a.parquet")
    LOG.with_columns(pl.col("user").cast(pl.String), pl.col("item").cast(pl.Int16)).write_parquet(
        tmp_path / "b.parquet"
    )
    spec = parse_spec(SPEC.replace("log.parquet", "*.parquet")).with_paths_from(tmp_path)
    assert read_raw(spec, "log", {3})["item"].to_list() == [13, 14, 13, 14]


# Lines that are no rows, and files that cannot be read


def test_lines_of_csv_that_are_no_rows_are_counted(tmp_path: Path) -> None:
    spec = in_format(tmp_path, "csv")
    path = tmp_path / "log.csv"
    path.write_text(path.read_text() + "1,2\n1,2,3,4,5,6,7\n")
    rows = read_rows(spec, "log", {1})
    assert (rows.frame.height, rows.malformed) == (2, 2)


def test_lines_of_json_that_are_no_rows_are_counted(tmp_path: Path) -> None:
    spec = in_format(tmp_path, "jsonl")
    path = tmp_path / "log.jsonl"
    bad = [
        b"nonsense",
        b"[1]",
        b'{"user": 1',
        b'{"user": NaN}',
        b'{"user": 1e400}',
        b'{"user": "\xff"}',
        b'{"user": 1} 2',
    ]
    path.write_bytes(b"\n".join([*bad, b"", path.read_bytes()]))
    rows = read_rows(spec, "log")
    assert (rows.frame.height, rows.malformed) == (5, len(bad))


def test_numbers_of_json_are_text_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": 1, "item": 1.50, "time": 1e3, "request": "x", "shown": true}')
    spec = parse_spec(SPEC.replace("log.parquet", "log.jsonl")).with_paths_from(tmp_path)
    (row,) = read_raw(spec, "log").to_dicts()
    assert row == {"user": "1", "item": "1.50", "time": "1e3", "request": "x", "shown": "true"}


def test_an_empty_csv_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("")
    spec = parse_spec(SPEC.replace("log.parquet", "log.csv")).with_paths_from(tmp_path)
    assert read_raw(spec, "log").shape == (0, 5)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_a_missing_column_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(SourceError, match=f"source log: .*log.{suffix}.*item"):
        read_raw(in_format(tmp_path, suffix, log=LOG.drop("item")), "log")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_file_that_is_not_of_its_format_is_named(tmp_path: Path, suffix: str) -> None:
    spec = in_format(tmp_path, suffix)
    (tmp_path / f"log.{suffix}").write_bytes(b"something else")
    with pytest.raises(DataError, match=f"log.{suffix} cannot be read: "):
        read_raw(spec, "log")


def test_a_file_system_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(SourceError, match=r"cannot reach 'nowhere://log\.parquet'"):
        read_raw(parse_spec(SPEC.replace("log.parquet", "nowhere://log.parquet")), "log")


# The census


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_census_counts_rows_and_those_that_requests_select(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "MERGE_ROWS", 1)
    monkeypatch.setattr(files, "CHUNK_ROWS", 2)
    monkeypatch.setattr(files, "CHUNK_BYTES", 64)
    found = take_census(in_format(tmp_path, suffix), "log").sort("user_id")
    assert found.select("user_id", "rows", "asked").rows() == [(1, 1, 1), (2, 2, 1), (3, 1, 1)]


def test_an_id_that_is_none_has_no_user(tmp_path: Path) -> None:
    log = LOG.with_columns(user=pl.Series(["1", "one", None, "1.5", None]))
    found = take_census(in_format(tmp_path, "csv", log=log), "log").sort("key")
    assert found.select("key", "user_id").rows() == [("1", 1), ("1.5", None), ("one", None)]


def test_a_where_that_cannot_be_told_in_bulk_selects_all(tmp_path: Path) -> None:
    text = SPEC.replace("shown = 1", "unused + 1 = 2")
    assert take_census(in_format(tmp_path, "csv", text), "log")["asked"].sum() == 4


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_elements_of_a_list_count_as_rows(tmp_path: Path, suffix: str) -> None:
    text = SPEC.replace('path = "log.parquet"', 'path = "log.parquet"\nexplode.lists = ["item"]')
    log = LOG.with_columns(item=pl.Series([[1], [2, 3], [], [4, 5, 6], None]))
    found = take_census(in_format(tmp_path, suffix, text, log), "log").sort("user_id")
    assert found["rows"].to_list() == [1, 3, 3]


def test_the_pieces_of_a_packed_text_count_as_rows(tmp_path: Path) -> None:
    packed = (
        'path = "log.parquet"\nexplode.string = { column = "item", fields = ["item", "shown"], field_separator = "-" }'
    )
    text = SPEC.replace('path = "log.parquet"', packed)
    log = LOG.drop("shown").with_columns(item=pl.Series(["1-0 2-1", "3-1", None, "", "4-1"]))
    found = take_census(in_format(tmp_path, "csv", text, log), "log").sort("user_id")
    assert found["rows"].to_list() == [2, 2, 1]


# Samples and groups


def numbered(rows: list[int]) -> pl.DataFrame:
    """The census of users 0, 1, ... with so many rows each, all of them asked for."""
    return pl.DataFrame({"key": map(str, range(len(rows))), "rows": rows, "asked": rows, "user_id": range(len(rows))})


def test_a_sample_is_of_users_in_the_dataset_and_of_users_that_it_lacks() -> None:
    stored = Users(np.arange(100), np.full(100, 5))
    drawn = draw_users(stored, numbered([1] * 150), 20, seed=0)
    assert (len(drawn), (drawn < 100).sum()) == (40, 20)
    assert (drawn == draw_users(stored, numbered([1] * 150), 20, seed=0)).all()
    assert len(set(drawn) & set(draw_users(stored, numbered([1] * 150), 20, seed=1))) < 40


def test_a_sample_holds_those_with_long_histories() -> None:
    events = np.where(np.arange(1_000) % 100 == 0, 1_000_000, 1)
    drawn = draw_users(Users(np.arange(1_000), events), numbered([0]), 20, seed=0)
    assert (drawn % 100 == 0).sum() >= 8


def test_groups_are_of_some_rows_and_of_one_user_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.validation.audit.user_sampling.GROUP_ROWS", 10)
    groups = group_users(np.arange(7), {"log": numbered([4, 4, 4, 99, 1, 1]), "more": numbered([1, 1, 1])})
    assert [group.tolist() for group in groups] == [[0, 1], [2, 3], [4, 5, 6]]
    assert everybody(Users(np.array([9]), np.array([1])), {"log": numbered([1, 1])}).tolist() == [0, 1, 9]


def test_a_source_whose_users_stand_in_lists_makes_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.validation.audit.user_sampling.GROUP_ROWS", 1)
    assert len(group_users(np.arange(3), {"log": numbered([4, 4, 4]), "lists": numbered([])})) == 1


# The end of the actions


def actions(folder: Path, times: list[object], *changes: tuple[str, str]) -> BuildSpec:
    LOG.write_parquet(folder / "log.parquet")
    rows = pl.DataFrame({"user": 1, "item": 10, "at": times, "kind": ["tap", "none", "scroll", "tap"][: len(times)]})
    rows.with_columns(user=pl.when(pl.int_range(pl.len()) != 3).then("user")).write_csv(folder / "acts.csv")
    text = SPEC + ACTIONS.replace("acts.parquet", "acts.csv")
    for old, new in changes:
        text = text.replace(old, new)
    return parse_spec(text).with_paths_from(folder)


def test_the_actions_end_with_the_latest_that_is_sound(tmp_path: Path) -> None:
    """The latest of all has no user, the one before it is filtered."""
    assert log_end(actions(tmp_path, [T, T + 8, T + 5, T + 9])) == (T + 5) * 1_000_000


def test_the_latest_action_is_found_behind_many_later_ones_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longbatch.validation.reference.log_end.SLICE_ROWS", 1)
    spec = actions(tmp_path, [str(T), str(T + 8), "soon", str(T + 9)])
    assert log_end(spec) == T * 1_000_000


def test_the_end_of_actions_with_times_as_text(tmp_path: Path) -> None:
    times = ["2024-01-01T00:00:00+05:00", "2024-06-01T00:00:00Z", "2023-12-31T22:00:00Z", "2024-07-01T00:00:00Z"]
    spec = actions(tmp_path, times, ('at", unit = "s"', 'at", unit = "iso"'))
    assert log_end(spec) == 1_704_060_000_000_000


def test_the_spec_may_say_when_the_actions_end(tmp_path: Path) -> None:
    until = ('source = "acts"', 'source = "acts"\nuntil = 2024-01-01T00:00:00Z')
    assert log_end(actions(tmp_path, [T], until)) == 1_704_067_200_000_000
    assert log_end(in_format(tmp_path, "parquet")) is None


def test_the_columns_of_filters_are_read_too(tmp_path: Path) -> None:
    spec = actions(tmp_path, [T])
    assert needed_columns(spec, "acts") == ["user", "at", "item", "kind"]
    assert needed_columns(spec, "log") == ["user", "time", "item", "request", "shown"]
