"""Parts survive the way through rows of Spark."""

from __future__ import annotations

import polars as pl
import pytest

from longbatch.jobs.engines.spark_parts import BUCKET, LATEST_ACTION, Part, frame_of, parts_batch, read_parts
from longbatch.jobs.engines.stages import one_batch
from longbatch.jobs.readers.chunks import Chunk
from longbatch.schemas.accounting import RowAccounting

CHUNK = Chunk("log.csv", 100, pl.DataFrame(), malformed=("only,two",), malformed_rows=(101,))


def sent(part: Part) -> Part:
    """Send a part through a row of Spark."""
    (received,) = read_parts(parts_batch([part]))
    assert received == part
    return received


def test_rows_of_several_parts_are_read_as_one_frame() -> None:
    rows = pl.DataFrame({"user_id": [1, 2], "item_id": [8, 9]})
    (part,) = map(sent, Part.of_rows(3, "rows:log", CHUNK, one_batch(rows)))
    assert (part.bucket, part.content, part.chunk) == (3, "rows:log", "log.csv#100")
    assert frame_of([part, part]).equals(pl.concat([rows, rows]))


@pytest.mark.parametrize("rows", [0, 1, 4, 1000])
def test_many_rows_become_parts_of_bounded_size(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.jobs.engines.spark_parts.PART_BYTES", 64)
    frame = pl.select(n=pl.int_range(rows), name=pl.format("row {}", pl.int_range(rows)))
    parts = list(Part.of_rows(0, "rows:log", CHUNK, one_batch(frame)))
    assert all(frame_of([part]).height <= 5 for part in parts)
    assert len(parts) <= rows
    if rows:
        assert frame_of(parts).equals(frame)


def test_an_accounting_is_read_as_it_was_written() -> None:
    accounting = RowAccounting(rows=5, rejected=2, accepted=3, reasons={"missing_user": 2})
    part = sent(Part.of_accounting(0, "log", CHUNK, accounting))
    assert part.content == "accounting:log"
    assert part.accounting() == accounting


def test_rejected_rows_keep_their_file_and_malformed_lines() -> None:
    part = sent(Part.of_rejected(0, "log", CHUNK, pl.DataFrame({"user": ["x"]})))
    chunk = part.rejected_chunk()
    assert (chunk.path, chunk.first_row, chunk.malformed, chunk.malformed_rows) == (
        "log.csv",
        100,
        ("only,two",),
        (101,),
    )
    assert frame_of([part]).rows() == [("x",)]


def test_messages_without_rows() -> None:
    latest = sent(Part.of_latest_action(0, CHUNK, 1_700_000_000_000_000))
    assert (latest.content, latest.time, latest.data) == (LATEST_ACTION, 1_700_000_000_000_000, b"")
    assert sent(Part.of_bucket(4)) == Part(4, BUCKET)
