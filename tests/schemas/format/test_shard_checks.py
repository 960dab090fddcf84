"""A block whose offsets, owners or nulls are invalid is rejected before anything uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_rows import Row, request, timeline, write_one_shard

from longbatch.schemas.errors import DatasetError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeline_row": 2}, r"block 0: timeline_row is outside the 2 timelines of the block"),
        ({"timeline_row": -1}, r"block 0: timeline_row is outside the 2 timelines of the block"),
        ({"timeline_row": None}, r"block 0: timeline_row is outside the 2 timelines of the block"),
        ({"history_end": 6}, r"block 0: request row 1 has history_end 6, but its timeline has 5 events"),
        ({"history_end": -1}, r"block 0: request row 1 has history_end -1, but its timeline has 5 events"),
        ({"history_end": None}, r"block 0: request row 1 has history_end None, but its timeline has 5 events"),
        (
            {"user_id": 2},
            r"block 0: request row 1 is of user 2 \(segment 0\), but its timeline is of user 1 \(segment 0\)",
        ),
        (
            {"segment": 1},
            r"block 0: request row 1 is of user 1 \(segment 1\), but its timeline is of user 1 \(segment 0\)",
        ),
    ],
)
def test_a_request_that_points_outside_its_timeline_is_rejected(tmp_path: Path, change: Row, message: str) -> None:
    timelines = [timeline(1, 11, 12, 13, 14, 15), timeline(2, 21, 22, 23, 24, 25, 26, 27)]
    invalid = {**request(2, 1, 0, 3, 3, 0), **change}
    dataset = write_one_shard(tmp_path / "x", [(timelines, [request(1, 1, 0, 0, 0, 1), invalid])])
    with pytest.raises(DatasetError, match=rf"requests/00007-a1\.arrow, {message}"):
        dataset.shard(0).block(0)


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize(
    ("record", "column", "message"),
    [
        ("request", "request_id", r"requests/.* request_id has 1 nulls but must have none. Build it again"),
        ("request", "request_time", r"requests/.* request_time has 1 nulls"),
        ("request", "targets", r"requests/.* targets has 1 nulls"),
        ("target", "item_id", r"requests/.* targets.item_id has 1 nulls"),
        ("event", "item_id", r"timelines/.* events.item_id has 1 nulls"),
        ("event", "event_time", r"timelines/.* events.event_time has 1 nulls"),
    ],
)
def test_a_null_in_a_column_of_the_format_is_rejected(
    tmp_path: Path, compression: str, record: str, column: str, message: str
) -> None:
    timelines, requests = [timeline(1, 11, 12)], [request(1, 1, 0, 0, 0, 1), request(2, 1, 0, 3, 2, 1)]
    records = {"request": requests[1], "target": requests[1]["targets"][0], "event": timelines[0]["events"][0]}
    records[record][column] = None
    dataset = write_one_shard(tmp_path / "x", [(timelines, requests)], compression=compression)
    with pytest.raises(DatasetError, match=message):
        dataset.shard(0).block(0)
