"""Tasks of the stages, apart from any engine."""

from __future__ import annotations

import polars as pl
import pytest

from longbatch.jobs.engines.stages import bucket_count, split_frame


@pytest.mark.parametrize(
    ("rows", "buckets"), [(0, 1), (1, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (1 << 33, 8192), (1 << 40, 65_536)]
)
def test_there_is_one_bucket_for_every_million_rows(rows: int, buckets: int) -> None:
    assert bucket_count(rows) == buckets


def test_rows_keep_their_order_within_a_bucket() -> None:
    frame = pl.DataFrame({"n": [0, 1, 2, 3, 4], "name": ["a", None, "c", "d", "e"]})
    parts = split_frame(frame, pl.Series([2, 0, 2, 0, 2]).cast(pl.UInt16).to_numpy(), 4)
    assert [part["n"].to_pylist() for part in parts] == [[1, 3], [], [0, 2, 4], []]
    assert [part.num_rows for part in split_frame(frame.head(0), frame["n"].head(0).to_numpy(), 2)] == [0, 0]
