"""Shards as columns contain what a list of entries contains, and travel to other processes as shared memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_processes import put_first_shard

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.manifest import BLOCK_TABLES, SHARD_TABLES, BlockEntry, FileEntry, ShardEntry
from longbatch.schemas.format.shards_table import BLOCK_FIELDS, SHARDS_SCHEMA, ShardsTable
from longbatch.schemas.time import to_microseconds

SIZES = st.integers(0, 2**40)
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


def file_entries(number: int, table: str) -> st.SearchStrategy[FileEntry]:
    digits = st.text("0123456789abcdef", min_size=64, max_size=64)
    return st.builds(FileEntry, path=st.just(f"{table}/{number:05d}-é.arrow"), size_bytes=SIZES, sha256=digits)


BLOCKS = st.builds(
    BlockEntry,
    **{name: TIMES if name.endswith("time") else st.integers(0, 2**32 - 1) for name in BLOCK_FIELDS},
)


@st.composite
def shard_lists(draw: st.DrawFn) -> list[ShardEntry]:
    """Shards in any order, with unique paths; some without dictionaries."""
    numbers = draw(st.lists(st.integers(0, 99_999), unique=True, max_size=6))
    shards = []
    for number in numbers:
        tables = SHARD_TABLES if draw(st.booleans()) else BLOCK_TABLES
        files = [draw(file_entries(number, table)) for table in tables]
        blocks = draw(st.lists(BLOCKS, min_size=1, max_size=4))
        shards.append(ShardEntry.from_blocks(draw(st.integers(0, 3)), files, blocks))
    return shards


def number_of(value: int | datetime) -> int:
    return to_microseconds(value) if isinstance(value, datetime) else value


@given(shard_lists())
def test_entries_are_those_that_the_table_was_made_of(shards: list[ShardEntry]) -> None:
    table = ShardsTable.from_entries(shards)
    assert list(table) == [table[number] for number in range(len(table))] == shards
    assert [table[-number] for number in range(1, len(shards) + 1)] == shards[::-1]
    assert list(table[1:3]) == shards[1:3]
    assert ShardsTable.from_entries(list(table)) == table
    with pytest.raises(IndexError):
        table[len(shards)]


@given(shard_lists())
def test_columns_are_the_fields_of_all_entries(shards: list[ShardEntry]) -> None:
    table = ShardsTable.from_entries(shards)
    for name in ("bucket", "total_requests", "total_history_events", "first_request_time", "last_request_time"):
        assert table.values(name).tolist() == [number_of(getattr(shard, name)) for shard in shards]
    blocks = [(number, block) for number, shard in enumerate(shards) for block in shard.blocks]
    assert table.num_blocks == len(blocks)
    assert [table.shard_of(block) for block in range(len(blocks))] == [number for number, _ in blocks]
    for name in BLOCK_FIELDS:
        assert table.block_values(name).tolist() == [number_of(getattr(block, name)) for _, block in blocks]


@given(shard_lists())
def test_files_are_those_of_all_entries(shards: list[ShardEntry]) -> None:
    table = ShardsTable.from_entries(shards)
    files = [entry for shard in shards for entry in shard.files]
    assert sorted(table.paths().to_pylist(), key=str) == sorted(entry.path for entry in files)
    assert set(table.folders()) == {entry.path.split("/")[0] for entry in files}
    assert sum(table.file_bytes(name) for name in SHARD_TABLES) == sum(entry.size_bytes for entry in files)
    lines = [f"\n{' '.join(entry.sha256 for entry in shard.files)}" for shard in shards]
    assert table.checksum_lines() == "".join(lines).encode()


@given(shard_lists(), st.data())
def test_shards_are_sorted_taken_and_replaced_like_lists(shards: list[ShardEntry], data: st.DataObject) -> None:
    half = len(shards) // 2
    table, others = ShardsTable.from_entries(shards[:half]), ShardsTable.from_entries(shards[half:])
    in_order = sorted(shards, key=lambda shard: shard.sort_key)
    assert list(table.sorted_with(others)) == in_order
    table = ShardsTable.from_entries(shards)
    numbers = data.draw(st.permutations(range(len(shards))))[: data.draw(st.integers(0, len(shards)))]
    assert list(table.take(np.array(numbers, dtype=np.int64))) == [shards[number] for number in numbers]
    changes = {number: data.draw(st.sampled_from([None, *shards])) for number in numbers}
    changed = [changes.get(number, shard) for number, shard in enumerate(shards)]
    assert list(table.replaced(changes)) == [shard for shard in changed if shard is not None]


@given(shard_lists())
def test_the_same_shards_are_the_same_bytes_however_the_table_was_made(shards: list[ShardEntry]) -> None:
    in_order = sorted(shards, key=lambda shard: shard.sort_key)
    merged = ShardsTable.from_entries(shards[::2]).sorted_with(ShardsTable.from_entries(shards[1::2]))
    assert stored_bytes(merged) == stored_bytes(ShardsTable.from_entries(in_order))


def stored_bytes(shards: ShardsTable) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SHARDS_SCHEMA) as writer:
        writer.write_table(shards.table)
    return sink.getvalue().to_pybytes()


def one_shard(**changes: Any) -> ShardsTable:
    files = [FileEntry(f"{table}/0.arrow", 1, "0" * 64) for table in BLOCK_TABLES]
    values = {name: datetime(2020, 1, 1, tzinfo=UTC) if name.endswith("time") else 1 for name in BLOCK_FIELDS}
    return ShardsTable.from_entries([ShardEntry.from_blocks(0, files, [BlockEntry(**(values | changes))])])


def test_iteration_over_many_shards_creates_each_entry_once() -> None:
    shards = one_shard().take(np.zeros(2_500, dtype=np.int64))
    assert len(list(shards)) == 2_500
    assert set(shards) == {shards[0]}


def test_a_copy_in_a_pickle_does_not_need_the_process_that_made_it() -> None:
    assert pickle.loads(pickle.dumps(one_shard())) == one_shard()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_started_process_receives_the_shards_as_shared_memory(method: str) -> None:
    shards = one_shard()
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    processes = [context.Process(target=put_first_shard, args=(shards, results)) for _ in range(2)]
    for process in processes:
        process.start()
    received = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [entry for entry, _ in received] == [shards[0]] * 2
    assert len({pid for _, pid in received} - {os.getpid()}) == 2
    assert shards == one_shard(), "the columns of the sender are now those in shared memory"
    assert shards[0] == one_shard()[0]


def with_column(name: str, values: Sequence[Any]) -> pa.Table:
    table = one_shard().table
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def test_other_columns_are_rejected() -> None:
    with pytest.raises(DatasetError, match=r"x\.arrow: its columns are not those of a shards table\. Restore"):
        ShardsTable(one_shard().table.drop_columns(["bucket"]), "x.arrow")


@pytest.mark.parametrize(
    ("column", "values", "named"),
    [
        ("bucket", [None], "bucket"),
        ("timelines", [None], "timelines"),
        ("requests", [{"path": None, "bytes": 1, "sha256": ""}], "requests.path"),
        ("dictionaries", [{"path": "x", "bytes": None, "sha256": ""}], "dictionaries.bytes"),
        ("blocks", [None], "blocks"),
        ("blocks", [[None]], "blocks.segments"),
        ("blocks", [[{"segments": 1}]], "blocks.events"),
    ],
)
def test_a_null_is_rejected(column: str, values: Sequence[Any], named: str) -> None:
    with pytest.raises(DatasetError, match=rf"x\.arrow: column {named} has a null\. Restore the snapshot or build"):
        ShardsTable(with_column(column, values), "x.arrow")


def test_a_shard_without_blocks_is_rejected() -> None:
    with pytest.raises(DatasetError, match=r"x\.arrow: shard 0 has no blocks\. Restore the snapshot or build"):
        ShardsTable(with_column("blocks", [[]]), "x.arrow")


def test_a_path_that_is_not_utf_8_is_rejected() -> None:
    table = one_shard().table
    path = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    field = SHARDS_SCHEMA.field("timelines")
    files = pa.StructArray.from_arrays([path, pa.array([1]), pa.array(["0"])], fields=list(field.type))
    with pytest.raises(DatasetError, match=r"x\.arrow cannot be read: .*UTF8.*Build the dataset again"):
        ShardsTable(table.set_column(1, field, files), "x.arrow")
