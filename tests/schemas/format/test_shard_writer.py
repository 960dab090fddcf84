"""The files of a shard and its entry; an error leaves no file behind."""

from __future__ import annotations

import errno
import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from shard_rows import BLOCKS, as_batches, file_of, write_one_shard

from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.disk import read_file
from longbatch.schemas.format.manifest import BLOCK_TABLES, COUNT_NAMES, ShardEntry
from longbatch.schemas.format.physical_schema import Batches, stored_timelines_schema
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.storage.local_store import LocalStore, _LocalFile
from longbatch.schemas.tables import timelines_schema


def write_again(dataset: Dataset, bucket: int = 9, attempt: str = "b2") -> ShardEntry | None:
    """Write the same blocks as a second shard of the dataset."""
    return write_shard(
        dataset.store, bucket, attempt, dataset.spec, [as_batches(dataset.spec, rows) for rows in BLOCKS]
    )


def test_the_entry_of_a_shard_describes_its_files_and_blocks(dataset: Dataset) -> None:
    entry = dataset.shards[0]
    assert entry.bucket == 7
    assert entry.timelines.path == "timelines/00007-a1.arrow"
    totals = {name: getattr(entry, f"total_{name}") for name in COUNT_NAMES}
    assert totals == {"segments": 3, "events": 10, "requests": 6, "targets": 7, "history_events": 12}
    assert [block.history_events for block in entry.blocks] == [7, 5]
    assert (entry.first_request_time.second, entry.last_request_time.second) == (0, 9)


def test_files_and_blocks_have_the_listed_checksums(dataset: Dataset) -> None:
    entry = dataset.shards[0]
    for table in BLOCK_TABLES:
        data = file_of(dataset, table).read_bytes()
        assert len(data) == entry.file(table).size_bytes
        assert hashlib.sha256(data).hexdigest() == entry.file(table).sha256
        for block in entry.blocks:
            byte_range = block.byte_range(table)
            block_bytes = data[byte_range.offset :][: byte_range.size_bytes]
            assert zlib.crc32(block_bytes) == byte_range.crc32
        read_file(dataset.store, entry.file(table))


def test_other_arrow_readers_can_open_the_files(dataset: Dataset) -> None:
    table = pa.ipc.open_file(str(file_of(dataset, "timelines"))).read_all()
    assert table["user_id"].to_pylist() == [1, 2, 3]


def test_the_files_have_the_stored_columns_of_the_spec(dataset: Dataset) -> None:
    assert pa.ipc.open_file(str(file_of(dataset, "timelines"))).schema == stored_timelines_schema(dataset.spec)


def test_plain_files_have_the_columns_of_the_logical_tables(tmp_path: Path) -> None:
    dataset = write_one_shard(tmp_path / "x", BLOCKS, encoding="plain")
    file = pa.ipc.open_file(str(file_of(dataset, "timelines")))
    assert file.schema == timelines_schema(dataset.spec)
    assert file.get_batch(0).to_pylist() == BLOCKS[0][0]


def test_a_shard_without_blocks_has_no_files(tmp_path: Path, dataset: Dataset) -> None:
    assert write_shard(LocalStore(tmp_path), 0, "a1", dataset.spec, []) is None
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("writes", [0, 1, 3, 6])
def test_a_full_disk_is_reported_and_leaves_no_file(
    writes: int, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many writes the next one fails, and so does every flush."""
    written: list[bytes] = []

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

    original = _LocalFile.__init__

    def open_on_a_full_disk(self: _LocalFile, path: Path, root: Path) -> None:
        original(self, path, root)
        self._file.close()
        self._file = FullDisk()  # type: ignore[assignment]

    monkeypatch.setattr(_LocalFile, "__init__", open_on_a_full_disk)
    message = r"cannot write .*-b2\.arrow: No space left on device. Free space there and run again. Nothing was"
    with pytest.raises(MachineError, match=message):
        write_again(dataset)
    assert not list(Path(dataset.location).rglob("*-b2.*"))


def test_an_error_between_blocks_leaves_no_file(dataset: Dataset) -> None:
    def interrupted() -> Iterator[Batches]:
        yield as_batches(dataset.spec, BLOCKS[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(dataset.store, 9, "b2", dataset.spec, interrupted())
    assert not list(Path(dataset.location).rglob("*-b2.*"))


def test_a_file_of_another_attempt_is_never_overwritten(dataset: Dataset) -> None:
    before = file_of(dataset, "timelines").read_bytes()
    with pytest.raises(FileExistsError, match=re.escape("00007-a1.arrow")):
        write_again(dataset, 7, "a1")
    assert file_of(dataset, "timelines").read_bytes() == before
