"""Raw rows for the naive reference: those of some users, in every file format."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from small_raw_logs import FORMATS, LOG, SPEC, T, write_actions, write_log

from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.validation.reference.raw_rows import needed_columns, read_raw
from longbatch.validation.reference.user_counts import count_user_rows
from longbatch.validation.reference.values import string_id


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_of_users_include_rows_of_others_with_the_same_request_id(tmp_path: Path, suffix: str) -> None:
    spec = write_log(tmp_path, suffix)
    rows = read_raw(spec, "log", {1})
    assert rows["item"].cast(pl.Int64).to_list() == [10, 11]
    assert sorted(rows.columns) == ["item", "request", "shown", "time", "user"]
    assert read_raw(spec, "log", {3})["item"].cast(pl.Int64).to_list() == [13, 14]
    assert read_raw(spec, "log", ()).height == 0
    assert read_raw(spec, "log").height == 5


@pytest.mark.parametrize("suffix", FORMATS)
def test_users_with_string_ids_are_selected_by_hash(tmp_path: Path, suffix: str) -> None:
    text = SPEC.replace('user_id = "user"', 'user_id = { column = "user", type = "string" }')
    spec = write_log(tmp_path, suffix, text, LOG.with_columns(pl.format("u{}", "user").alias("user")))
    assert read_raw(spec, "log", {string_id("u3")})["user"].to_list() == ["u3", None]


@pytest.mark.parametrize("user", ["7", "007", "+7", "7.0"])
def test_every_spelling_of_an_integer_id_is_selected(tmp_path: Path, user: str) -> None:
    log = LOG.with_columns(pl.col("user").cast(pl.String).replace("2", user))
    assert read_raw(write_log(tmp_path, "csv", log=log), "log", {7})["item"].to_list() == ["10", "11", "12"]


def test_integer_ids_may_be_whole_floats(tmp_path: Path) -> None:
    spec = write_log(tmp_path, "parquet", log=LOG.with_columns(pl.col("user").cast(pl.Float64) + 1e15))
    assert read_raw(spec, "log", {10**15 + 3})["item"].to_list() == [13, 14]


def test_binary_and_dictionary_columns_are_read_as_strings(tmp_path: Path) -> None:
    text = SPEC.replace('"user"', '{ column = "user", type = "string" }')
    users = pl.col("user").cast(pl.String)
    spec = write_log(
        tmp_path,
        "parquet",
        text,
        LOG.with_columns(users.cast(pl.Binary), item=pl.col("item").cast(pl.String).cast(pl.Categorical)),
    )
    assert read_raw(spec, "log", {string_id("3")})["item"].to_list() == ["13", "14"]


def test_a_source_with_ids_in_lists_is_read_completely(tmp_path: Path) -> None:
    text = SPEC.replace('path = "log.parquet"', 'path = "log.parquet"\nexplode.lists = ["request", "item"]')
    lists = LOG.group_by("user", "shown", "time", maintain_order=True).agg("request", "item")
    spec = write_log(tmp_path, "parquet", text, lists)
    assert read_raw(spec, "log", {1}).height == 5
    assert count_user_rows(spec, "log")["rows"].sum() == 4


def test_files_with_different_types_are_concatenated(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "a.parquet")
    LOG.with_columns(pl.col("user").cast(pl.String), pl.col("item").cast(pl.Int16)).write_parquet(
        tmp_path / "b.parquet"
    )
    spec = parse_spec(SPEC.replace("log.parquet", "*.parquet")).with_paths_from(tmp_path)
    assert read_raw(spec, "log", {3})["item"].to_list() == [13, 14, 13, 14]


def test_columns_of_filters_are_needed(tmp_path: Path) -> None:
    spec = write_actions(tmp_path, [T])
    assert needed_columns(spec, "acts") == ["user", "at", "item", "kind"]
    assert needed_columns(spec, "log") == ["user", "time", "item", "request", "shown"]
