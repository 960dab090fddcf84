"""Paths, globs and URIs, and the files they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_logs import CSV, NUMBERS, ROWS, STRINGS, rows_of, spec_of, write

from longbatch.jobs.readers.files import list_files
from longbatch.schemas.errors import SourceError
from longbatch.validation.reference.source_files import source_files


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
    assert [file.path for file in list_files(f"file://{tmp_path}/*.csv.gz")] == [f"file://{tmp_path}/a.csv.gz"]


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
        ("nowhere://bucket/a.parquet", r"source log: nowhere://bucket: longbatch does not know nowhere://"),
    ],
)
def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        rows_of(path.format(tmp=tmp_path))


def names_in(path: str, below: Path) -> list[str]:
    return [Path(file.path).relative_to(below).as_posix() for file in list_files(path)]


def test_a_folder_stands_for_its_files_without_those_that_writers_leave_beside_them(tmp_path: Path) -> None:
    for name in ("_SUCCESS", "_committed_7", ".part-0.crc", "part-0.crc", "_temporary/0/part-9", ".hidden/part-8"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("part-0", "dt=7/part-1", "_day=8/part-2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        ROWS.write_parquet(tmp_path / name)
    expected = ["_day=8/part-2", "dt=7/part-1", "part-0"]
    assert names_in(str(tmp_path), tmp_path) == names_in(f"{tmp_path}/", tmp_path) == expected
    assert names_in(f"{tmp_path}/*", tmp_path) == names_in(f"{tmp_path}/**", tmp_path) == expected
    assert names_in(f"{tmp_path}/_temporary", tmp_path) == ["_temporary/0/part-9"], "the spec names it itself"
    assert names_in(f"{tmp_path}/_SUCCESS", tmp_path) == ["_SUCCESS"]
    assert len(rows_of(str(tmp_path), format="parquet")) == 9


def test_a_folder_that_a_glob_matches_stands_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "day1.parquet").mkdir()
    ROWS.write_parquet(tmp_path / "day1.parquet" / "part-0.zstd")
    ROWS.write_parquet(tmp_path / "day2.parquet")
    assert names_in(f"{tmp_path}/*.parquet", tmp_path) == ["day1.parquet/part-0.zstd", "day2.parquet"]


def test_a_folder_of_hidden_files_only_is_an_error_that_counts_them(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").write_bytes(b"")
    with pytest.raises(SourceError, match=r"all 1 files of '.*' are hidden \(their names start with '_' or '\.'\)\."):
        list_files(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"file not found: '.*empty'\. Check the path"):
        list_files(str(tmp_path / "empty"))


@pytest.mark.parametrize("pattern", ["{tmp}", "{tmp}/*.parquet", "{tmp}/a.parquet", "{tmp}/**"])
@pytest.mark.parametrize(
    ("log", "table_format"), [("_delta_log/0.json", "delta"), ("metadata/v1.metadata.json", "iceberg")]
)
def test_the_files_of_a_table_are_not_read_without_its_log(
    tmp_path: Path, pattern: str, log: str, table_format: str
) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    (tmp_path / log).parent.mkdir()
    (tmp_path / log).write_text("{}")
    message = rf"table in '.*', some of which may be deleted or replaced rows\. Set format = \"{table_format}\""
    with pytest.raises(SourceError, match=message):
        list_files(pattern.format(tmp=tmp_path))


def test_the_partition_of_a_delta_table_is_not_read_without_its_log(tmp_path: Path) -> None:
    (tmp_path / "dt=7").mkdir()
    (tmp_path / "_delta_log").mkdir()
    ROWS.write_parquet(tmp_path / "dt=7" / "a.parquet")
    with pytest.raises(SourceError, match=r'Set format = "delta" and the table as the path'):
        list_files(f"{tmp_path}/dt=7/*.parquet")


def test_links_to_nothing_and_to_a_folder_above_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(SourceError, match=r"a\.parquet' is a link to a file that does not exist\. Remove it"):
        list_files(f"{tmp_path}/*.parquet")
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(SourceError, match=r"loop' is a link to a folder above it\. Remove the link"):
        list_files(str(tmp_path))


def test_options_and_credentials_in_a_uri_are_errors_without_the_secret() -> None:
    with pytest.raises(SourceError, match=r"'s3://bucket/a\.csv' is followed by options, which a path cannot have"):
        list_files("s3://bucket/a.csv?endpoint_override=evil")
    with pytest.raises(SourceError, match=r"s3://bucket: the URL contains credentials") as error:
        list_files("s3://KEY:SECRET@bucket/a.csv")
    assert "SECRET" not in str(error.value)


def test_brackets_in_the_name_of_a_folder_are_not_a_glob(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]"
    folder.mkdir()
    ROWS.write_parquet(folder / "log.parquet")
    for path in ("log.parquet", "*.parquet", "l[o]g.parquet"):
        spec = spec_of(path, format="parquet").with_paths_from(folder)
        (pattern,) = spec.sources["log"].path
        assert names_in(pattern, folder) == ["log.parquet"]
        assert [file.path for file in source_files(spec, "log")] == ["log.parquet"]
    assert names_in(str(folder), folder) == ["log.parquet"]
