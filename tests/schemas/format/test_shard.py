"""The shard: what is written is read back, and what was not written so is a named error."""

from __future__ import annotations

import errno
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format import disk
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.disk import HashingFile, check_file
from longbatch.schemas.format.manifest import BLOCK_TABLES, COUNT_NAMES, FileEntry
from longbatch.schemas.format.physical_schema import stored_timelines_schema
from longbatch.schemas.format.shard_reader import ShardReader
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.spec.build_spec import History
from longbatch.schemas.tables import timelines_schema

Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]
Batches = tuple[pa.RecordBatch, pa.RecordBatch]
Write = Callable[..., Dataset]
Builders = tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]


def file_of(dataset: Dataset, table: str) -> Path:
    return dataset.path / getattr(dataset.shards[0], table).path


def same_length(path: Path, old: bytes, new: bytes) -> None:
    """Alter a file without changing its length."""
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def test_blocks_are_read_as_they_were_written(dataset: Dataset, blocks: list[Rows]) -> None:
    reader = dataset.shard(0)
    for number, (timelines, requests) in enumerate(blocks):
        block = reader.block(number)
        assert block.timelines.to_pylist() == timelines
        assert block.requests.to_pylist() == requests


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_every_compression_is_read_back(
    tmp_path: Path, write_dataset: Write, blocks: list[Rows], compression: str
) -> None:
    dataset = write_dataset(tmp_path / "x", blocks, compression=compression)
    assert [block.requests.num_rows for block in dataset.blocks()] == [4, 2]


def test_the_row_of_a_shard_describes_its_files_and_blocks(dataset: Dataset) -> None:
    row = dataset.shards[0]
    assert row.bucket == 7
    assert row.timelines.path == "timelines/00007-a1.arrow"
    totals = {name: row.total(name) for name in COUNT_NAMES}
    assert totals == {"segments": 3, "events": 10, "requests": 6, "targets": 7, "history_events": 12}
    assert [block.history_events for block in row.blocks] == [7, 5]
    assert (row.first_request_time.second, row.last_request_time.second) == (0, 9)


def test_files_and_blocks_have_the_checksums_that_are_listed(dataset: Dataset) -> None:
    row = dataset.shards[0]
    for table in BLOCK_TABLES:
        data = file_of(dataset, table).read_bytes()
        assert len(data) == row.file(table).size_bytes
        assert hashlib.sha256(data).hexdigest() == row.file(table).sha256
        for block in row.blocks:
            place = block.byte_range(table)
            part = data[place.offset :][: place.size_bytes]
            assert zlib.crc32(part) == place.crc32
        check_file(dataset.path, row.file(table), checksum=True)


def test_other_readers_can_open_the_files(dataset: Dataset) -> None:
    table = pa.ipc.open_file(str(file_of(dataset, "timelines"))).read_all()
    assert table["user_id"].to_pylist() == [1, 2, 3]


def test_no_blocks_make_no_files(tmp_path: Path, dataset: Dataset) -> None:
    assert write_shard(tmp_path, 0, "a1", dataset.spec, []) is None
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_missing_file_is_named(dataset: Dataset) -> None:
    file_of(dataset, "requests").unlink()
    with pytest.raises(
        DatasetError, match=r"requests/00007-a1\.arrow is listed in the snapshot but missing. Restore it"
    ):
        dataset.shard(0)


def test_a_short_file_is_named(dataset: Dataset) -> None:
    path = file_of(dataset, "timelines")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    message = rf"timelines/00007-a1\.arrow has {size - 10:,} bytes, but the snapshot lists {size:,}. Restore it"
    with pytest.raises(DatasetError, match=message):
        dataset.shard(0)


def test_an_altered_file_fails_its_checksum(dataset: Dataset) -> None:
    same_length(file_of(dataset, "timelines"), b"item_id", b"item_ID")
    with pytest.raises(DatasetError, match=r"00007-a1\.arrow was altered: its sha256 is [0-9a-f]{12}\.\.\., but"):
        check_file(dataset.path, dataset.shards[0].timelines, checksum=True)


def test_a_file_with_other_columns_is_refused(dataset: Dataset) -> None:
    same_length(file_of(dataset, "timelines"), b"item_id", b"item_ID")
    with pytest.raises(DatasetError, match=r"00007-a1\.arrow: its columns are not those of the dataset's spec"):
        dataset.shard(0)


def test_a_file_that_is_not_arrow_is_refused(dataset: Dataset) -> None:
    path = file_of(dataset, "timelines")
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(
        DatasetError, match=r"00007-a1\.arrow is not the Arrow file that was written: .*. Build it again"
    ):
        dataset.shard(0)


def test_a_block_that_cannot_be_decoded_is_named(dataset: Dataset) -> None:
    path, block = file_of(dataset, "requests"), dataset.shards[0].blocks[1]
    data = bytearray(path.read_bytes())
    start = block.requests_offset + 16
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    reader = dataset.shard(0)
    reader.block(0)
    with pytest.raises(
        DatasetError,
        match=r"requests/00007-a1\.arrow, block 1 was altered: its crc32 is [0-9a-f]{8}, but the snapshot lists [0-9a-f]{8}. Restore it",
    ):
        reader.block(1)


def test_another_number_of_blocks_than_listed_is_refused(dataset: Dataset) -> None:
    row = dataset.shards[0]
    fewer = replace(row, blocks=row.blocks[:1])
    with pytest.raises(DatasetError, match=r"00007-a1\.arrow has 2 blocks, but the snapshot lists 1. Build it again"):
        ShardReader(dataset.path, fewer, dataset.spec)


def test_another_number_of_rows_than_listed_is_refused(dataset: Dataset) -> None:
    row = dataset.shards[0]
    first = replace(row.blocks[0], requests=3)
    reader = ShardReader(dataset.path, replace(row, blocks=(first, row.blocks[1])), dataset.spec)
    with pytest.raises(
        DatasetError, match=r"requests/00007-a1\.arrow, block 0 has 4 rows, but the snapshot lists 3. Build it again"
    ):
        reader.block(0)


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
def test_a_request_that_points_outside_its_timeline_is_refused(
    tmp_path: Path, write_dataset: Write, rows: Builders, change: dict[str, Any], message: str
) -> None:
    timeline, request = rows
    timelines = [timeline(1, 11, 12, 13, 14, 15), timeline(2, 21, 22, 23, 24, 25, 26, 27)]
    bad = {**request(2, 1, 0, 3, 3, 0), **change}
    dataset = write_dataset(tmp_path / "x", [(timelines, [request(1, 1, 0, 0, 0, 1), bad])])
    with pytest.raises(DatasetError, match=rf"requests/00007-a1\.arrow, {message}"):
        dataset.shard(0).block(0)


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize(
    ("where", "column", "message"),
    [
        ("request", "request_id", r"requests/.* request_id has 1 nulls but must have none. Build it again"),
        ("request", "request_time", r"requests/.* request_time has 1 nulls"),
        ("request", "targets", r"requests/.* targets has 1 nulls"),
        ("target", "item_id", r"requests/.* targets.item_id has 1 nulls"),
        ("event", "item_id", r"timelines/.* events.item_id has 1 nulls"),
        ("event", "event_time", r"timelines/.* events.event_time has 1 nulls"),
    ],
)
def test_a_null_in_a_column_of_the_format_is_refused(
    tmp_path: Path, write_dataset: Write, rows: Builders, compression: str, where: str, column: str, message: str
) -> None:
    timeline, request = rows
    timelines, requests = [timeline(1, 11, 12)], [request(1, 1, 0, 0, 0, 1), request(2, 1, 0, 3, 2, 1)]
    {"request": requests[1], "target": requests[1]["targets"][0], "event": timelines[0]["events"][0]}[where][column] = (
        None
    )
    dataset = write_dataset(tmp_path / "x", [(timelines, requests)], compression=compression)
    with pytest.raises(DatasetError, match=message):
        dataset.shard(0).block(0)


def dictionaries_of_text(tmp_path: Path, write_dataset: Write, blocks: list[Rows]) -> tuple[Dataset, pa.RecordBatch]:
    """A dataset whose events have a text, and the one row of its dictionaries file."""
    plain = write_dataset(tmp_path / "plain", blocks).spec.history.model_dump()
    history = History.model_validate({**plain, "features": {"tab": "int8", "word": "string"}})
    blocks = deepcopy(blocks)
    for timelines, _ in blocks:
        for event in (event for timeline in timelines for event in timeline["events"]):
            event["word"] = f"word {event['item_id']}"
    dataset = write_dataset(tmp_path / "x", blocks, history=history)
    return dataset, pa.ipc.open_file(file_of(dataset, "dictionaries").read_bytes()).get_batch(0)


@pytest.mark.parametrize("what", ["offset", "no utf-8", "renamed", "no batch", "two rows"])
def test_dictionaries_that_no_encoder_wrote_are_refused_before_anything_follows_them(
    tmp_path: Path, write_dataset: Write, blocks: list[Rows], what: str
) -> None:
    """With the right checksum: a listed file may have been written by someone else."""
    dataset, batch = dictionaries_of_text(tmp_path, write_dataset, blocks)
    texts = batch["events.word"].values
    if what in ("offset", "no utf-8"):
        offsets, data = (bytearray(buffer) for buffer in texts.buffers()[1:])
        if what == "offset":
            offsets[8:12] = (-70_000_000).to_bytes(4, "little", signed=True)
        else:
            data[0] = 0xFF
        buffers = [None, pa.py_buffer(bytes(offsets)), pa.py_buffer(bytes(data))]
        texts = pa.Array.from_buffers(pa.string(), len(texts), buffers)
        column = pa.ListArray.from_arrays(batch["events.word"].offsets, texts)
        batch = batch.set_column(batch.schema.get_field_index("events.word"), batch.schema.field("events.word"), column)
    elif what == "renamed":
        batch = batch.rename_columns([name.upper() for name in batch.schema.names])
    written = {"no batch": [], "two rows": [pa.concat_batches([batch, batch])]}.get(what, [batch])
    path, sink = file_of(dataset, "dictionaries"), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        for each in written:
            writer.write_batch(each)
    path.write_bytes(sink.getvalue())
    row = dataset.shards[0]
    entry = FileEntry(
        path.relative_to(dataset.path).as_posix(),
        path.stat().st_size,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    with pytest.raises(DatasetError, match=r"dictionaries/00007-a1\.arrow cannot be read: .*. Build it again"):
        ShardReader(dataset.path, replace(row, dictionaries=entry), dataset.spec)


@pytest.mark.parametrize("table", ["timelines", "requests"])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_damaged_byte_anywhere_is_an_error_or_is_read_but_never_a_crash(
    tmp_path: Path, write_dataset: Write, blocks: list[Rows], table: str, compression: str
) -> None:
    dataset = write_dataset(tmp_path / "x", blocks, compression=compression)
    path = file_of(dataset, table)
    whole = path.read_bytes()
    for place in np.random.default_rng(5).integers(0, len(whole), 150).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            for batch in dataset.scan():
                batch.validate(full=True)
        except DatasetError as error:
            assert path.name in str(error)  # noqa: PT017 (either is fine, a crash is not)


@pytest.mark.parametrize("writes", [0, 1, 3, 6])
def test_a_full_disk_is_said_and_leaves_no_file(
    writes: int,
    dataset: Dataset,
    blocks: list[Rows],
    as_batches: Callable[..., Batches],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After so many writes the next one fails, and so does every flush."""
    written = []

    class FullDisk:
        closed = False

        def write(self, data: bytes) -> None:
            written.append(data)
            if len(written) > writes:
                raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self.closed = True

    def on_a_full_disk(self: HashingFile, path: Path) -> None:
        real(self, path)
        self._file.close()
        self._file = FullDisk()  # type: ignore[assignment]

    real = HashingFile.__init__
    monkeypatch.setattr(HashingFile, "__init__", on_a_full_disk)
    message = r"cannot write .*-b2\.arrow: No space left on device. Free space there and run again. Nothing was"
    with pytest.raises(MachineError, match=message):
        write_shard(dataset.path, 9, "b2", dataset.spec, [as_batches(dataset.spec, rows) for rows in blocks])
    assert not list(dataset.path.rglob("*-b2.*"))


def test_a_disk_that_fails_when_flushed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sync(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk.os, "fsync", no_sync)
    file = HashingFile(tmp_path / "x")
    file.write(b"abc")
    with pytest.raises(MachineError, match=r"cannot write .*x: Input/output error"):
        file.close()
    assert file.closed


def test_an_error_between_blocks_leaves_no_file(
    dataset: Dataset, blocks: list[Rows], as_batches: Callable[..., Batches]
) -> None:
    def broken() -> Iterator[Batches]:
        yield as_batches(dataset.spec, blocks[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(dataset.path, 9, "b2", dataset.spec, broken())
    assert not list(dataset.path.rglob("*-b2.*"))


def test_a_file_of_another_attempt_is_never_written_over(
    dataset: Dataset, blocks: list[Rows], as_batches: Callable[..., Batches]
) -> None:
    before = file_of(dataset, "timelines").read_bytes()
    with pytest.raises(FileExistsError, match=re.escape("00007-a1.arrow")):
        write_shard(dataset.path, 7, "a1", dataset.spec, [as_batches(dataset.spec, rows) for rows in blocks])
    assert file_of(dataset, "timelines").read_bytes() == before


def test_a_folder_that_is_not_there_leaves_no_open_file(
    dataset: Dataset, blocks: list[Rows], as_batches: Callable[..., Batches]
) -> None:
    file_of(dataset, "requests").unlink()
    (dataset.path / "requests").rmdir()
    with pytest.raises(FileNotFoundError):
        write_shard(dataset.path, 9, "b2", dataset.spec, [as_batches(dataset.spec, rows) for rows in blocks])
    assert not list(dataset.path.rglob("*-b2.*"))


def test_the_files_hold_the_columns_of_the_spec(dataset: Dataset) -> None:
    assert pa.ipc.open_file(str(file_of(dataset, "timelines"))).schema == stored_timelines_schema(dataset.spec)


def test_plain_files_hold_the_logical_tables(tmp_path: Path, write_dataset: Write, blocks: list[Rows]) -> None:
    dataset = write_dataset(tmp_path / "x", blocks, encoding="plain")
    file = pa.ipc.open_file(str(file_of(dataset, "timelines")))
    assert file.schema == timelines_schema(dataset.spec)
    assert file.get_batch(0).to_pylist() == blocks[0][0]
