"""Checks and conversions of chunks, whatever the format."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import ROWS, rows_of

from longbatch.jobs.readers.chunks import plain_types
from longbatch.schemas.errors import SourceError


@pytest.mark.parametrize("name", ["log.parquet", "log.arrow", "log.csv"])
def test_a_missing_column_is_an_error_that_lists_the_columns(tmp_path: Path, name: str) -> None:
    path, frame = tmp_path / name, ROWS.drop("time")
    {"log.parquet": frame.write_parquet, "log.arrow": frame.write_ipc, "log.csv": frame.write_csv}[name](path)  # type: ignore[operator]
    with pytest.raises(
        SourceError, match=r"source log: .*log\.\w+ has no column 'time'\. Its columns are user, item, more"
    ):
        rows_of(path)


def test_dictionaries_binaries_and_fixed_size_lists_become_strings_and_lists(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": pa.array(["a", "b"]).dictionary_encode(),
            "item": pa.array([b"x", None], pa.binary()),
            "time": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
            "lists": pa.array([["a"], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        }
    )
    frame = plain_types(pl.DataFrame(pl.from_arrow(table)))
    assert frame.schema == {
        "user": pl.String,
        "item": pl.String,
        "time": pl.List(pl.Int32),
        "lists": pl.List(pl.String),
    }
    assert frame.rows() == [("a", "x", [1, 2], ["a"]), ("b", None, [3, 4], None)]
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row[0] for row in rows_of(tmp_path / "a.parquet")] == ["a", "b"]
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert [row[0] for row in rows_of(tmp_path / "a.arrow")] == ["a", "b"]
