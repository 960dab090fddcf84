"""Scans of text files in tasks are the scans of threads."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from longbatch.jobs.engines import spark_scans
from longbatch.jobs.engines.spark_scans import scan_on_executors
from longbatch.jobs.readers import chunks
from longbatch.jobs.readers.chunks import Piece
from longbatch.jobs.readers.text_ranges import TextFormat, ranges_of, scan_in_threads


class SessionOfOneTask:
    """What `scan_on_executors` uses of a Spark session; the task runs here, on batches of two rows."""

    def createDataFrame(self, rows: list[tuple[int, int, str]], schema: str) -> SessionOfOneTask:
        self.rows = rows
        return self

    def repartition(self, partitions: int, key: str) -> SessionOfOneTask:
        assert 0 < partitions <= len(self.rows)
        return self

    def mapInArrow(self, function: Any, schema: str) -> SessionOfOneTask:
        table = pa.table(
            {"number": pa.array([r[1] for r in self.rows], pa.int32()), "piece": [r[2] for r in self.rows]}
        )
        self.scans = [row for batch in function(table.to_batches(max_chunksize=2)) for row in batch.to_pylist()]
        return self

    def collect(self) -> list[dict[str, Any]]:
        return self.scans[::-1]


@pytest.mark.parametrize("min_ranges", [1, 1000])
def test_tasks_scan_what_threads_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_ranges: int) -> None:
    monkeypatch.setattr(spark_scans, "MIN_RANGES", min_ranges)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64)
    (tmp_path / "a.csv").write_text('user,note\n1,"a\nb"\n' * 20)
    size = (tmp_path / "a.csv").stat().st_size
    piece = Piece("log", str(tmp_path / "a.csv"), size, 1, header=("user", "note"), constants="long")
    ranges, text = ranges_of(piece), TextFormat(",", '"', 1)
    session: Any = SessionOfOneTask()
    assert len(ranges) > 20
    assert scan_on_executors(session, ranges, text) == scan_in_threads(ranges, text)
    if min_ranges == 1:
        assert json.loads(session.rows[3][2]) == json.loads(
            json.dumps(asdict(replace(ranges[3], header=(), constants="")))
        )
