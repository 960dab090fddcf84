"""Pieces of a source and their chunks: every format gives the same rows, and an unreadable file is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from raw_logs import COLUMNS, CSV, JSONL, ROWS, STRINGS, chunks_of, rows_of, spec_of, write

from longbatch.jobs.readers import chunks
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.spec.build_spec import BuildSpec


def test_the_spec_can_declare_the_format(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "log.txt", CSV.replace(",", ";")), format="csv", separator=";") == STRINGS


def test_only_the_needed_columns_are_read(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "log.parquet")
    ROWS.write_ipc(tmp_path / "log.arrow")
    paths = [
        tmp_path / "log.parquet",
        tmp_path / "log.arrow",
        write(tmp_path / "a.csv", CSV),
        write(tmp_path / "a.jsonl", JSONL),
    ]
    for path in paths:
        (chunk,) = chunks_of(path)
        assert chunk.frame.columns == COLUMNS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_csv_and_json_are_read_in_blocks_of_complete_lines(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 40)
    lines = [f"{n},{n},{n}" if name == "a.csv" else f'{{"user":{n},"item":{n},"time":{n}}}' for n in range(50)]
    path = write(tmp_path / name, "\n".join([*(["user,item,time"] if name == "a.csv" else []), *lines]))
    found = chunks_of(path)
    assert len(found) > 5
    assert [row for chunk in found for row in chunk.frame["user"].to_list()] == [str(n) for n in range(50)]
    assert [chunk.first_row for chunk in found] == [int(chunk.frame["user"][0]) for chunk in found]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.parquet", b"PAR1 no parquet PAR1", r"a\.parquet is not a readable Parquet file"),
        ("a.parquet", b"", r"a\.parquet is not a readable Parquet file"),
        ("a.arrow", b"ARROW1 no arrow", r"a\.arrow is not a readable Arrow IPC file"),
        ("a.csv", b"user,item,time\n1,2,\xff\xfe\n", r"a\.csv cannot be read as CSV: .*UTF8"),
        ("a.csv", gzip.compress(CSV.encode(), mtime=0), r"a\.csv has no readable CSV header"),
        (
            "a.csv.gz",
            gzip.compress(CSV.encode() * 9999, mtime=0)[:-30],
            r"a\.csv\.gz has no readable CSV header: Truncated",
        ),
        ("a.csv.gz", b"no gzip", r"a\.csv\.gz has no readable CSV header"),
        ("a.jsonl.gz", gzip.compress(JSONL * 9999, mtime=0)[:-30], r"a\.jsonl\.gz cannot be read"),
    ],
)
def test_an_unreadable_file_is_an_error_with_its_path(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((DataError, SourceError), match=message):
        rows_of(tmp_path / name)


def test_a_spark_table_needs_the_spark_engine() -> None:
    with pytest.raises(
        SourceError, match=r"source log is a Spark table, which only Spark can read\. Build with --engine spark"
    ):
        plan_pieces(spec_of("catalog.log", format="table"), "log")


def test_binary_columns_that_are_not_utf8_are_an_error(tmp_path: Path) -> None:
    frame = ROWS.with_columns(user=pl.Series([b"a", b"\xff", b"c"]))
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has a binary column that is not UTF-8: .*(user|invalid utf8)"):
        rows_of(tmp_path / "a.parquet")


def test_a_parquet_file_is_split_at_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 4)
    frame = pl.DataFrame({"user": range(10), "item": range(10), "time": range(10)})
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=3)
    pieces = plan_pieces(spec_of(str(tmp_path / "a.parquet")), "log")
    assert [(piece.first, piece.last, piece.first_row, piece.rows) for piece in pieces] == [(0, 2, 0, 6), (2, 4, 6, 4)]
    assert [(chunk.first_row, chunk.frame.height) for chunk in chunks_of(tmp_path / "a.parquet")] == [(0, 6), (6, 4)]


def test_rows_of_csv_and_json_are_estimated_from_the_size(tmp_path: Path) -> None:
    small, packed = write(tmp_path / "a.csv", "user,item,time\n" + "1,2,3\n" * 100), write(tmp_path / "b.csv.gz", CSV)
    assert plan_pieces(spec_of(str(small)), "log")[0].rows == small.stat().st_size // 48
    assert plan_pieces(spec_of(str(packed)), "log")[0].rows >= 1


def test_files_without_rows_yield_no_rows(tmp_path: Path) -> None:
    ROWS.head(0).write_parquet(tmp_path / "a.parquet")
    ROWS.head(0).write_ipc(tmp_path / "a.arrow")
    assert (
        rows_of(tmp_path / "a.parquet")
        == rows_of(tmp_path / "a.arrow")
        == rows_of(write(tmp_path / "a.jsonl", ""))
        == []
    )


def synthetic_spec(tmp_path: Path, column: str, per_file: str) -> BuildSpec:
    return BuildSpec.model_validate(
        {
            "sources": {
                "log": {
                    "path": [str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet")],
                    "synthetic_time": {"column": column, "start": "2020-01-01T00:00:00.5Z", "per_file": per_file},
                }
            },
            "history": {"source": "log", "user_id": "user", "item_id": "item", "event_time": column},
            "requests": {"source": "log", "user_id": "user", "item_id": "item", "request_time": column},
        }
    )


def synthetic_times(tmp_path: Path, column: str, per_file: str) -> list[list[int]]:
    spec = synthetic_spec(tmp_path, column, per_file)
    chunks = [chunk for piece in plan_pieces(spec, "log") for chunk in read_piece(spec, piece)]
    return [chunk.frame[column].dt.epoch("us").to_list() for chunk in chunks]


def test_synthetic_timestamps_follow_the_order_of_paths_and_rows(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    ROWS[:1].write_parquet(tmp_path / "b.parquet")
    start = 1_577_836_800_500_000
    assert synthetic_times(tmp_path, "synthetic", "1s") == [[start], [start + 1_000_000 + n for n in range(3)]]


def test_a_synthetic_timestamp_cannot_replace_a_column(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    ROWS.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        SourceError,
        match=r"b\.parquet already has the column 'time' of synthetic_time\. "
        r"Choose another name for synthetic_time\.column",
    ):
        synthetic_times(tmp_path, "time", "1s")


def test_a_file_cannot_have_more_rows_than_microseconds_in_per_file(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    ROWS.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has at least 3 rows, but synthetic_time\.per_file is only 2us"):
        synthetic_times(tmp_path, "synthetic", "2us")
