"""Paths, globs and URIs, and the files they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_logs import CSV, NUMBERS, ROWS, STRINGS, rows_of, write

from longbatch.jobs.readers.files import filesystem_of, list_files
from longbatch.schemas.errors import SourceError


def test_each_file_of_globs_and_lists_is_read_once_in_order(tmp_path: Path) -> None:
    for n in (2, 1, 3):
        (tmp_path / f"d{n}").mkdir()
        ROWS[n - 1 : n].write_parquet(tmp_path / f"d{n}" / "log.parquet")
    assert rows_of(f"{tmp_path}/*/log.parquet") == NUMBERS
    assert rows_of(f"{tmp_path}/**/*.parquet") == NUMBERS
    assert rows_of([f"{tmp_path}/d3/log.parquet", f"{tmp_path}/d[12]/*.parquet"]) == [NUMBERS[2], *NUMBERS[:2]]
    assert rows_of([f"{tmp_path}/d1/log.parquet", f"{tmp_path}/*/log.parquet"]) == NUMBERS


def test_uris_are_read_like_paths(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    ROWS[:2].write_parquet(tmp_path / "a.parquet")
    ROWS[2:].write_parquet(tmp_path / "more" / "b.parquet")
    assert rows_of(f"file://{tmp_path}/a.parquet") == NUMBERS[:2]
    assert rows_of(f"file://{tmp_path}/**.parquet") == NUMBERS
    assert rows_of(f"file://{write(tmp_path / 'a.csv.gz', CSV)}") == STRINGS
    assert [path for path, _ in list_files(f"file://{tmp_path}/*.csv.gz")] == [f"file://{tmp_path}/a.csv.gz"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "{tmp}/none.parquet",
            r"source log: file not found: '.*none\.parquet'\. Check the path; relative paths start at",
        ),
        ("{tmp}/*.parquet", r"source log: no file matches '.*\*\.parquet'\. Check the path"),
        ("file://{tmp}/none.parquet", r"source log: file not found: 'file://.*none\.parquet'"),
        ("file://{tmp}/none/*.parquet", r"source log: no file matches 'file://.*\*\.parquet'"),
        ("nowhere://bucket/a.parquet", r"source log: cannot reach 'nowhere://bucket/a\.parquet': "),
    ],
)
def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        rows_of(path.format(tmp=tmp_path))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source log: file not found: '/.*'\. Check the path"):
        rows_of(tmp_path, format="parquet")


def test_a_local_path_needs_no_scheme(tmp_path: Path) -> None:
    system, inner = filesystem_of(str(tmp_path))
    assert (system.type_name, inner) == ("local", str(tmp_path))
