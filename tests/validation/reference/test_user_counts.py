"""How many raw rows each user of a source has."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from small_raw_logs import FORMATS, LOG, SPEC, write_log

from longbatch.validation.reference import raw_files, user_counts
from longbatch.validation.reference.user_counts import count_user_rows


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_of_each_user_and_rows_of_requests_are_counted(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_counts, "MERGE_ROWS", 1)
    monkeypatch.setattr(raw_files, "CHUNK_ROWS", 2)
    monkeypatch.setattr(raw_files, "CHUNK_BYTES", 64)
    counts = count_user_rows(write_log(tmp_path, suffix), "log").sort("user_id")
    assert counts.select("user_id", "rows", "request_rows").rows() == [(1, 1, 1), (2, 2, 1), (3, 1, 1)]


def test_an_unparsable_user_id_has_no_user(tmp_path: Path) -> None:
    log = LOG.with_columns(user=pl.Series(["1", "one", None, "1.5", None]))
    counts = count_user_rows(write_log(tmp_path, "csv", log=log), "log").sort("raw_id")
    assert counts.select("raw_id", "user_id").rows() == [("1", 1), ("1.5", None), ("one", None)]


def test_a_where_that_fails_on_whole_columns_selects_all_rows(tmp_path: Path) -> None:
    text = SPEC.replace("shown = 1", "unused + 1 = 2")
    assert count_user_rows(write_log(tmp_path, "csv", text), "log")["request_rows"].sum() == 4


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_list_elements_count_as_rows(tmp_path: Path, suffix: str) -> None:
    text = SPEC.replace('path = "log.parquet"', 'path = "log.parquet"\nexplode.lists = ["item"]')
    log = LOG.with_columns(item=pl.Series([[1], [2, 3], [], [4, 5, 6], None]))
    counts = count_user_rows(write_log(tmp_path, suffix, text, log), "log").sort("user_id")
    assert counts["rows"].to_list() == [1, 3, 3]


def test_elements_of_a_packed_string_count_as_rows(tmp_path: Path) -> None:
    packed = (
        'path = "log.parquet"\nexplode.string = { column = "item", fields = ["item", "shown"], field_separator = "-" }'
    )
    text = SPEC.replace('path = "log.parquet"', packed)
    log = LOG.drop("shown").with_columns(item=pl.Series(["1-0 2-1", "3-1", None, "", "4-1"]))
    counts = count_user_rows(write_log(tmp_path, "csv", text, log), "log").sort("user_id")
    assert counts["rows"].to_list() == [2, 2, 1]
