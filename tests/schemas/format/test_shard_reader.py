"""What was written is read back; files and blocks that differ from the snapshot are errors that name them."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shard_rows import BLOCKS, file_of, write_one_shard

from longbatch.schemas.arrow import list_column
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.manifest import BlockTable, FileEntry
from longbatch.schemas.format.shard_reader import ShardReader
from longbatch.schemas.spec.build_spec import History
from longbatch.schemas.types import ArrowArray


def dictionaries_file(dataset: Dataset) -> Path:
    entry = dataset.shards[0].dictionaries
    assert entry is not None
    return Path(dataset.location) / entry.path


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    """Alter a file without changing its length."""
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def test_blocks_are_read_as_they_were_written(dataset: Dataset) -> None:
    reader = dataset.shard(0)
    for number, (timelines, requests) in enumerate(BLOCKS):
        block = reader.block(number)
        assert block.timelines.to_pylist() == timelines
        assert block.requests.to_pylist() == requests


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_every_compression_is_read_back(tmp_path: Path, compression: str) -> None:
    dataset = write_one_shard(tmp_path / "x", BLOCKS, compression=compression)
    assert [block.requests.num_rows for block in dataset.blocks()] == [4, 2]


def test_a_missing_file_is_named(dataset: Dataset) -> None:
    file_of(dataset, "requests").unlink()
    message = r"requests/00007-a1\.arrow is listed in the snapshot but missing. Restore it"
    with pytest.raises(DatasetError, match=message):
        dataset.shard(0)


def test_a_truncated_file_is_named(dataset: Dataset) -> None:
    path = file_of(dataset, "timelines")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    message = rf"timelines/00007-a1\.arrow has {size - 10:,} bytes, but the snapshot lists {size:,}. Restore it"
    with pytest.raises(DatasetError, match=message):
        dataset.shard(0)


def test_a_file_with_other_columns_is_rejected(dataset: Dataset) -> None:
    replace_bytes(file_of(dataset, "timelines"), b"item_id", b"item_ID")
    with pytest.raises(DatasetError, match=r"00007-a1\.arrow: its columns are not those of the dataset's spec"):
        dataset.shard(0)


def test_a_file_that_is_not_arrow_is_rejected(dataset: Dataset) -> None:
    path = file_of(dataset, "timelines")
    path.write_bytes(b"x" * path.stat().st_size)
    message = r"00007-a1\.arrow is not the Arrow file that was written: .*. Build it again"
    with pytest.raises(DatasetError, match=message):
        dataset.shard(0)


def test_an_altered_block_is_named(dataset: Dataset) -> None:
    path, block = file_of(dataset, "requests"), dataset.shards[0].blocks[1]
    data = bytearray(path.read_bytes())
    start = block.requests_offset + 16
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    reader = dataset.shard(0)
    reader.block(0)
    message = (
        r"requests/00007-a1\.arrow, block 1 was altered: its crc32 is [0-9a-f]{8}, "
        r"but the snapshot lists [0-9a-f]{8}. Restore it"
    )
    with pytest.raises(DatasetError, match=message):
        reader.block(1)


def test_a_file_with_more_blocks_than_listed_is_rejected(dataset: Dataset) -> None:
    entry = dataset.shards[0]
    fewer = replace(entry, blocks=entry.blocks[:1])
    with pytest.raises(DatasetError, match=r"00007-a1\.arrow has 2 blocks, but the snapshot lists 1. Build it again"):
        ShardReader(dataset.store, fewer, dataset.spec)


def test_a_block_with_more_rows_than_listed_is_rejected(dataset: Dataset) -> None:
    entry = dataset.shards[0]
    first = replace(entry.blocks[0], requests=3)
    reader = ShardReader(dataset.store, replace(entry, blocks=(first, entry.blocks[1])), dataset.spec)
    message = r"requests/00007-a1\.arrow, block 0 has 4 rows, but the snapshot lists 3. Build it again"
    with pytest.raises(DatasetError, match=message):
        reader.block(0)


def write_with_strings(tmp_path: Path) -> tuple[Dataset, pa.RecordBatch]:
    """A dataset whose events have a string feature, and the one row of its dictionaries file."""
    plain = write_one_shard(tmp_path / "plain", BLOCKS).spec.history.model_dump()
    history = History.model_validate({**plain, "features": {"tab": "int8", "word": "string"}})
    blocks = deepcopy(BLOCKS)
    for timelines, _ in blocks:
        for event in (event for timeline in timelines for event in timeline["events"]):
            event["word"] = f"word {event['item_id']}"
    dataset = write_one_shard(tmp_path / "x", blocks, history=history)
    return dataset, pa.ipc.open_file(dictionaries_file(dataset).read_bytes()).get_batch(0)


def with_strings(batch: pa.RecordBatch, offsets: bytes, data: bytes) -> pa.RecordBatch:
    """Replace the buffers of the strings of a dictionaries file."""
    lists = list_column(batch, "events.word")
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    strings: ArrowArray = pa.Array.from_buffers(pa.string(), len(lists.values), buffers)
    index = batch.schema.get_field_index("events.word")
    return batch.set_column(index, batch.schema.field(index), pa.ListArray.from_arrays(lists.offsets, strings))


def invalid_dictionaries(batch: pa.RecordBatch, damage: str) -> list[pa.RecordBatch]:
    """The record batches of a dictionaries file with some damage."""
    offsets, data = (bytearray(buffer or b"") for buffer in list_column(batch, "events.word").values.buffers()[1:])
    if damage == "an offset out of bounds":
        offsets[8:12] = (-70_000_000).to_bytes(4, "little", signed=True)
        return [with_strings(batch, bytes(offsets), bytes(data))]
    if damage == "invalid UTF-8":
        data[0] = 0xFF
        return [with_strings(batch, bytes(offsets), bytes(data))]
    if damage == "renamed columns":
        return [batch.rename_columns([name.upper() for name in batch.schema.names])]
    return [] if damage == "no batch" else pa.Table.from_batches([batch, batch]).combine_chunks().to_batches()


@pytest.mark.parametrize(
    "damage", ["an offset out of bounds", "invalid UTF-8", "renamed columns", "no batch", "two rows"]
)
def test_invalid_dictionaries_with_a_valid_checksum_are_rejected(tmp_path: Path, damage: str) -> None:
    """Another program may have written a listed file, so the checksum alone is not enough."""
    dataset, batch = write_with_strings(tmp_path)
    batches = invalid_dictionaries(batch, damage)
    path, sink = dictionaries_file(dataset), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, (batches or [batch])[0].schema) as writer:
        for written in batches:
            writer.write_batch(written)
    path.write_bytes(sink.getvalue())
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = FileEntry(path.relative_to(Path(dataset.location)).as_posix(), path.stat().st_size, checksum)
    with pytest.raises(DatasetError, match=r"dictionaries/00007-a1\.arrow cannot be read: .*. Build it again"):
        ShardReader(dataset.store, replace(dataset.shards[0], dictionaries=entry), dataset.spec)


@pytest.mark.parametrize("table", ["timelines", "requests"])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_damaged_byte_never_crashes_the_reader(tmp_path: Path, table: BlockTable, compression: str) -> None:
    """It is an error that names the file, or it is in a part of the file that is not read."""
    dataset = write_one_shard(tmp_path / "x", BLOCKS, compression=compression)
    path = file_of(dataset, table)
    original = path.read_bytes()
    for offset in np.random.default_rng(5).integers(0, len(original), 150).tolist():
        damaged = bytearray(original)
        damaged[offset] ^= 0xFF
        path.write_bytes(damaged)
        try:
            for batch in dataset.scan():
                batch.validate(full=True)
        except DatasetError as error:
            assert path.name in str(error)  # noqa: PT017 (both an error and a result are valid, a crash is not)
