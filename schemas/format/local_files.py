"""Read byte ranges of a shard's files; each is compared with its listed checksum before Arrow parses it.

Arrow trusts the metadata of a message for the layout of its body, so that damaged bytes could make it read out of
bounds. A range is therefore only returned when its CRC-32 is the listed one. A range of a local file is checked once
per process, because it is mapped memory that stays the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, cast

import pyarrow as pa

from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import Store

from .disk import check_sha256, read_file
from .manifest import ByteRange, FileEntry

MAGIC_BYTES = 8  # an Arrow file begins with "ARROW1" and two zeros, then the schema message
OPEN_FILES = 128  # number of files that a process keeps mapped


class Files(Protocol):
    """Reads the files of a dataset. Open it in the process that reads; it cannot be pickled."""

    def read_range(self, path: str, byte_range: ByteRange, where: str) -> pa.Buffer:
        """Read and check a listed range.

        Args:
            path: The file, relative to the dataset.
            byte_range: Offset, length and checksum.
            where: File and block, the beginning of error messages.

        Returns:
            The bytes.

        Raises:
            DatasetError: The file is missing or too short, or the bytes were altered.
        """
        ...

    def read_file(self, entry: FileEntry) -> pa.Buffer:
        """Read a file and compare it with its SHA-256.

        Args:
            entry: The file as the snapshot lists it.

        Returns:
            All bytes of the file.

        Raises:
            DatasetError: The file is missing or was altered; names it.
        """
        ...


class LocalFiles:
    """Reads files below a folder by mapping them into memory, without a copy.

    Args:
        store: The dataset.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Ranges by path and offset. Mapped pages of a committed file never change, so one check per process is enough.
        self._checked: set[tuple[str, int]] = set()
        self._map = lru_cache(maxsize=OPEN_FILES)(self._mapped)

    def read_range(self, path: str, byte_range: ByteRange, where: str) -> pa.Buffer:
        """Return a range of a mapped file, checked the first time; see `Files`."""
        buffer = self._map(path)
        offset, size = byte_range.offset, byte_range.size_bytes
        if offset < 0 or size < 0 or offset + size > buffer.size:
            raise DatasetError(
                f"{where}: the snapshot lists bytes {offset:,} to {offset + size:,}, but the file has {buffer.size:,}. "
                "It was truncated; restore it or build again."
            )
        # CRC before Arrow parses: a damaged flatbuffer or body offset can make the parser read out of bounds.
        data = buffer.slice(offset, size)
        if (path, offset) not in self._checked:
            check_crc32(data, byte_range.crc32, where)
            self._checked.add((path, offset))
        return data

    def read_file(self, entry: FileEntry) -> pa.Buffer:
        """Return the mapped file, read once to check it; see `Files`."""
        buffer = self._map(entry.path)
        check_sha256(buffer, entry, self._store.name(entry.path))
        return buffer

    def _mapped(self, path: str) -> pa.Buffer:
        # A map and not a read: worker processes share the page cache, and columns that are skipped are never loaded.
        try:
            return self._store.read(path)
        except (FileNotFoundError, MachineError) as error:
            raise DatasetError(
                f"{self._store.name(path)} cannot be read: {error}. Restore it or build again."
            ) from None


class StoredFiles:
    """Reads files straight from a store, without a cache: for jobs that read each block once.

    Args:
        store: The dataset.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def read_range(self, path: str, byte_range: ByteRange, where: str) -> pa.Buffer:
        """Request a range and check it; see `Files`."""
        data = request_range(self._store, path, byte_range, where)
        check_crc32(data, byte_range.crc32, where)
        return data

    def read_file(self, entry: FileEntry) -> pa.Buffer:
        """Request a file and check it; see `Files`."""
        return read_file(self._store, entry)


def files_of(store: Store) -> Files:
    """Return a reader of a dataset's files: mapped if they are on this machine, else requested one by one.

    Args:
        store: The dataset.
    """
    return LocalFiles(store) if isinstance(store, LocalStore) else StoredFiles(store)


def request_range(store: Store, path: str, byte_range: ByteRange, where: str) -> pa.Buffer:
    """Read a listed range of a file.

    Args:
        store: The dataset.
        path: The file.
        byte_range: Offset and length.
        where: File and block, the beginning of error messages.

    Returns:
        The bytes, not yet checked.

    Raises:
        DatasetError: The file is missing or too short.
    """
    offset, size = byte_range.offset, byte_range.size_bytes
    if offset < 0 or size < 0:
        raise DatasetError(f"{where}: the snapshot lists bytes {offset:,} to {offset + size:,}. It was altered.")
    try:
        data = store.read_range(path, offset, size)
    except FileNotFoundError:
        raise DatasetError(
            f"{store.name(path)} is listed in the snapshot but missing. Restore it or build again."
        ) from None
    if data.size != size:
        raise DatasetError(
            f"{where}: the snapshot lists {size:,} bytes from {offset:,}, but the file has {data.size:,} of them. "
            "It was truncated; restore it or build again."
        )
    return data


def check_crc32(buffer: pa.Buffer, listed: int, where: str) -> None:
    """Compare bytes with their listed CRC-32.

    Args:
        buffer: The bytes.
        listed: The CRC-32 in the snapshot.
        where: File and block, the beginning of the error message.

    Raises:
        DatasetError: The bytes were altered.
    """
    crc32 = zlib.crc32(memoryview(buffer))
    if crc32 != listed:
        raise DatasetError(
            f"{where} was altered: its crc32 is {crc32:08x}, but the snapshot lists {listed:08x}. "
            "Restore it or build again."
        )


def read_record_batch(
    buffer: pa.Buffer, number: int, schema: pa.Schema, included: Sequence[int] | None, where: str
) -> pa.RecordBatch:
    """Read the record batch of a checked range.

    Block 0's range begins with the file's magic bytes and schema message; the ranges of all other blocks are one
    message each. Without `included` nothing is copied but what is compressed.

    Args:
        buffer: Bytes of the range.
        number: Index of the block in its shard.
        schema: Stored columns of the file.
        included: Indices of the columns to decode; None for all.
        where: File and block, the beginning of error messages.

    Returns:
        The record batch, with the included columns.

    Raises:
        DatasetError: The bytes are not the Arrow message that was written.
    """
    try:
        if included is None:
            source = pa.BufferReader(buffer)
            if number == 0:
                source.seek(MAGIC_BYTES)
                # read_schema leaves the source at the next message, the first block; its stub only knows buffers.
                _check_schema(pa.ipc.read_schema(cast(pa.Buffer, source)), schema, where)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)
        else:
            batch = _open_stream(buffer, number, schema, included, where).read_next_batch()
        # The checksum shows that the bytes are those that were written, not that their writer was correct. Full
        # validation checks every list offset and every string before anything follows them.
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise DatasetError(f"{where} cannot be read: {error}. Build it again.") from None
    return batch


def _open_stream(
    buffer: pa.Buffer, number: int, schema: pa.Schema, included: Sequence[int], where: str
) -> pa.RecordBatchStreamReader:
    """An Arrow stream of the one batch: only a stream reader can skip columns before they are decompressed."""
    options = pa.ipc.IpcReadOptions(included_fields=list(included), use_threads=False)
    if number == 0:
        _check_schema(pa.ipc.read_schema(buffer.slice(MAGIC_BYTES)), schema, where)
        return pa.ipc.open_stream(buffer.slice(MAGIC_BYTES), options=options)
    # A stream begins with a schema, which only block 0 has in its range, so it is put in front; this copies the range.
    joined = b"".join((memoryview(schema.serialize()), memoryview(buffer)))
    return pa.ipc.open_stream(pa.py_buffer(joined), options=options)


def _check_schema(actual: pa.Schema, expected: pa.Schema, where: str) -> None:
    if not actual.equals(expected):
        raise DatasetError(f"{where}: its columns are not those of the dataset's spec. Build it again.")
