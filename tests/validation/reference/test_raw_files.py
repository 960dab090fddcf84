"""Raw files of a source: paths, malformed lines, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from small_raw_logs import LOG, SPEC, write_log

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.validation.reference.raw_rows import read_raw, read_rows


def test_paths_may_be_globs_lists_and_uris(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "more.parquet"):
        LOG.with_columns(unused=pl.lit(name)).write_parquet(tmp_path / name)
    for path, users in (
        (f'"{tmp_path}/?.parquet"', 10),
        (f'["file://{tmp_path}/a.parquet"]', 5),
        (f'"file://{tmp_path}/*.parquet"', 15),
    ):
        assert read_raw(parse_spec(SPEC.replace('"log.parquet"', path)), "log").height == users


def test_malformed_csv_lines_are_counted(tmp_path: Path) -> None:
    spec = write_log(tmp_path, "csv")
    path = tmp_path / "log.csv"
    path.write_text(path.read_text() + "1,2\n1,2,3,4,5,6,7\n")
    rows = read_rows(spec, "log", {1})
    assert (rows.frame.height, rows.malformed) == (2, 2)


def test_malformed_json_lines_are_counted(tmp_path: Path) -> None:
    spec = write_log(tmp_path, "jsonl")
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


def test_json_numbers_are_strings_as_written(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": 1, "item": 1.50, "time": 1e3, "request": "x", "shown": true}')
    spec = parse_spec(SPEC.replace("log.parquet", "log.jsonl")).with_paths_from(tmp_path)
    (row,) = read_raw(spec, "log").to_dicts()
    assert row == {"user": "1", "item": "1.50", "time": "1e3", "request": "x", "shown": "true"}


def test_an_empty_csv_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("")
    spec = parse_spec(SPEC.replace("log.parquet", "log.csv")).with_paths_from(tmp_path)
    assert read_raw(spec, "log").shape == (0, 5)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_a_missing_column_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(SourceError, match=f"source log: .*log.{suffix}.*item"):
        read_raw(write_log(tmp_path, suffix, log=LOG.drop("item")), "log")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_file_of_another_format_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    spec = write_log(tmp_path, suffix)
    (tmp_path / f"log.{suffix}").write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"cannot read .*log\.{suffix}: "):
        read_raw(spec, "log")


def test_an_unknown_file_system_is_an_error_that_names_it() -> None:
    with pytest.raises(SourceError, match=r"cannot access 'nowhere://log\.parquet'"):
        read_raw(parse_spec(SPEC.replace("log.parquet", "nowhere://log.parquet")), "log")
