"""Reading the blocks of a dataset for the audit, and naming blocks, users and requests in findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import SupportsInt, cast

import numpy as np
import pyarrow as pa

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.manifest import BlockTable, ShardEntry
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.types import ArrowArray, ArrowListArray, BoolArray, Int64Array


def readable_blocks(dataset: Dataset, shard: int) -> Iterator[tuple[int, Block | str]]:
    """Read the blocks of a shard; one that cannot be read does not end the audit.

    Args:
        dataset: The dataset.
        shard: Index of the shard.

    Yields:
        The index of the block, and the block or a finding that states why it cannot be read.
    """
    try:
        reader = dataset.shard(shard)
    except DatasetError as error:
        yield 0, f"shard {shard}: {error}"
        return
    for index in range(reader.num_blocks):
        try:
            yield index, reader.block(index)
        except DatasetError as error:
            yield index, f"shard {shard}: {error}"


def block_label(shard: int, entry: ShardEntry, block: int, table: BlockTable = "requests") -> str:
    """Return how findings name a block: by shard, file and index.

    Args:
        shard: Index of the shard.
        entry: The shard as the snapshot lists it.
        block: Index of the block in the shard.
        table: The table whose file is named, "timelines" or "requests".
    """
    return f"shard {shard} ({entry.file(table).path}), block {block}"


def request_label(requests: pa.RecordBatch, row: SupportsInt) -> str:
    """Return how findings name the request in a row of a requests table."""
    return f"user {requests['user_id'][int(row)].as_py()}, request {requests['request_id'][int(row)].as_py()}"


def first_finding(is_wrong: BoolArray, describe: Callable[[int], str]) -> Iterator[str]:
    """Report the first row that is wrong, and how many more there are.

    Args:
        is_wrong: Whether each row is wrong, (N,).
        describe: Returns the finding for a row.

    Yields:
        At most one finding.
    """
    rows = np.flatnonzero(is_wrong)
    if len(rows):
        others = f" (and {len(rows) - 1:,} more like it)" if len(rows) > 1 else ""
        yield describe(int(rows[0])) + others


def as_int64(column: ArrowArray) -> Int64Array:
    """Return integers or timestamps without nulls as int64, (N,); timestamps are microseconds UTC."""
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))


def list_column(batch: pa.RecordBatch, name: str) -> ArrowListArray:
    """Return a list column of a record batch."""
    return cast("ArrowListArray", batch[name])


def list_lengths(column: ArrowListArray) -> Int64Array:
    """Return the length of each list, (N,); lists are never null in a dataset."""
    return np.diff(as_int64(column.offsets))
