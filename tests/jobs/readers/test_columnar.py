"""Readers of Parquet and Arrow IPC files."""

from __future__ import annotations

import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import NUMBERS, ROWS, chunks_of, rows_of

from longbatch.jobs.readers import chunks
from longbatch.schemas.errors import DataError


@pytest.mark.parametrize("codec", ["zstd", "snappy", "uncompressed"])
def test_parquet_rows_are_read(tmp_path: Path, codec: Any) -> None:
    ROWS.write_parquet(tmp_path / "log.parquet", compression=codec)
    assert rows_of(tmp_path / "log.parquet") == NUMBERS


@pytest.mark.parametrize("name", ["log.arrow", "log.feather", "log.ipc"])
@pytest.mark.parametrize("codec", ["zstd", "lz4", "uncompressed"])
def test_arrow_rows_are_read(tmp_path: Path, name: str, codec: Any) -> None:
    ROWS.write_ipc(tmp_path / name, compression=codec)
    assert rows_of(tmp_path / name) == NUMBERS


def test_a_damaged_row_group_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ROWS.write_parquet(path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: cannot read row groups 0 to 0: "):
        rows_of(path)


def test_large_row_groups_and_batches_are_split_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 2)
    frame = pl.DataFrame({"user": range(7), "item": range(7), "time": range(7)})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ipc(tmp_path / "a.arrow")
    assert [(chunk.first_row, chunk.frame.height) for chunk in chunks_of(tmp_path / "a.parquet")] == [(0, 4), (4, 3)]
    assert [(c.first_row, c.frame.height) for c in chunks_of(tmp_path / "a.arrow")] == [(0, 2), (2, 2), (4, 2), (6, 1)]


def test_int96_timestamps_beyond_the_range_of_nanoseconds_are_read_right(tmp_path: Path) -> None:
    times = [datetime(2600, 1, 1), datetime(2023, 11, 14, 1, 2, 3, 4)]
    table = pa.table({"user": [1, 2], "item": [1, 2], "time": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert [row[1] for row in rows_of(tmp_path / "a.parquet")] == times


def test_wrong_offsets_in_an_arrow_file_are_an_error_and_read_no_foreign_memory(tmp_path: Path) -> None:
    batch = pa.record_batch({"user": ["a", "b"], "item": [1, 2], "time": [1, 2]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    data = (tmp_path / "a.arrow").read_bytes()
    right = struct.pack("<3i", 0, 1, 2)
    assert data.count(right) == 1
    (tmp_path / "a.arrow").write_bytes(data.replace(right, struct.pack("<3i", 0, 1 << 30, 1 << 30)))
    with pytest.raises(DataError, match=r"a\.arrow is not a readable Arrow IPC file: "):
        rows_of(tmp_path / "a.arrow")
