"""Rows that are split by bucket on disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from longbatch.jobs.engines.spill import Partition


def test_a_bucket_is_read_in_the_order_of_the_names_of_chunks(tmp_path: Path) -> None:
    partition = Partition(tmp_path / "rows")
    assert partition.read(0) is None
    for name, start in (("b", 10), ("a", 0)):
        partition.write(name, [pa.record_batch({"n": [start]}), pa.record_batch({"n": [start + 1]})])
    rows = partition.read(1)
    assert rows is not None
    assert rows["n"].to_list() == [1, 11]
