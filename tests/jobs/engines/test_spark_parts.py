"""Parts survive the way through rows of Spark."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from longbatch.jobs.commit.incremental_state import EarlierFiles
from longbatch.jobs.engines.quarantine import quarantine_rows
from longbatch.jobs.engines.spark_partitioning import PARTITION_KEY, partition_keys
from longbatch.jobs.engines.spark_parts import BUCKET, LATEST_ACTION, Part, frame_of, parts_batch, read_parts
from longbatch.jobs.engines.stages import one_batch
from longbatch.jobs.readers.chunks import Chunk
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.format.manifest import FileEntry

CHUNK = Chunk("log.csv", 100, pl.DataFrame(), malformed=("only,two",), malformed_rows=(101,))


def sent(part: Part) -> Part:
    """Send a part through a row of Spark."""
    (received,) = read_parts(parts_batch([part], 4))
    assert received == part
    return received


def test_rows_of_several_parts_are_read_as_one_frame() -> None:
    rows = pl.DataFrame({"user_id": [1, 2], "item_id": [8, 9]})
    (part,) = map(sent, Part.of_rows(3, "rows:log", "log.csv#100", one_batch(rows)))
    assert (part.bucket, part.content, part.chunk) == (3, "rows:log", "log.csv#100")
    assert frame_of([part, part]).equals(pl.concat([rows, rows]))


@pytest.mark.parametrize("rows", [0, 1, 4, 1000])
def test_many_rows_become_parts_of_bounded_size(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.jobs.engines.spark_parts.PART_BYTES", 64)
    frame = pl.select(n=pl.int_range(rows), name=pl.format("row {}", pl.int_range(rows)))
    parts = list(Part.of_rows(0, "rows:log", "a", one_batch(frame)))
    assert all(frame_of([part]).height <= 5 for part in parts)
    assert len(parts) <= rows
    if rows:
        assert frame_of(parts).equals(frame)


def test_an_accounting_is_read_as_it_was_written() -> None:
    accounting = RowAccounting(rows=5, rejected=2, accepted=3, reasons={"missing_user": 2})
    part = sent(Part.of_accounting(0, "log", CHUNK, accounting))
    assert part.content == "accounting:log"
    assert part.accounting() == accounting


def test_rejected_rows_are_read_as_they_were_written() -> None:
    rows = quarantine_rows(CHUNK, pl.DataFrame({"user": ["x"], "_row": [4], "_reasons": [["missing_user"]]}))
    (part,) = map(sent, Part.of_rows(0, "rejected:log", "log.csv#100", one_batch(rows)))
    frame = frame_of([part])
    assert frame.schema == rows.schema
    assert frame.rows() == rows.rows()
    assert rows["_source_row"].to_list() == [105, 101]


def test_the_files_of_a_bucket_are_read_as_they_were_written() -> None:
    entry = FileEntry("state/events-00004-a.arrow", 10, "ab", rows=3, table="events", bucket=4)
    earlier = EarlierFiles(state=(entry,), vocabulary=(FileEntry("vocabulary/00004-a.arrow", 5, "cd"),))
    part = sent(Part.of_bucket(4, earlier))
    assert (part.bucket, part.content) == (4, BUCKET)
    assert part.earlier_files() == earlier


def test_the_parts_of_a_bucket_have_the_key_of_its_partition() -> None:
    parts = [Part.of_bucket(bucket, EarlierFiles()) for bucket in (0, 3, 4, 7)]
    keys = parts_batch(parts, 4)[PARTITION_KEY].to_pylist()
    assert keys == partition_keys(np.array([0, 3, 0, 3])).tolist()


def test_a_latest_action_has_no_rows() -> None:
    latest = sent(Part.of_latest_action(0, CHUNK, 1_700_000_000_000_000))
    assert (latest.content, latest.time, latest.data) == (LATEST_ACTION, 1_700_000_000_000_000, b"")
