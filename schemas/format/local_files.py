"""Where a shard's bytes come from: ranges of files, checked against the snapshot before anything reads them.

Arrow parses the metadata of a message and trusts what it says about the body. So a range is handed on only when its CRC-32 is the listed
one; a range is checked once per process, for it is mapped memory that stays as it is.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from longbatch.schemas.errors import DatasetError

MAGIC_BYTES = 8  # "ARROW1" and two zeros, in front of the schema message
OPEN_FILES = 128  # mappings a process keeps


@dataclass(frozen=True)
class Range:
    """A listed byte range of a listed file, and the CRC-32 of its bytes."""

    entry: dict[str, Any]
    offset: int
    size: int
    crc32: int

    @property
    def path(self) -> str:
        """The file, relative to the dataset."""
        return str(self.entry["path"])


class Files(Protocol):
    """Reads listed ranges; opened where it is used, never pickled."""

    def range(self, part: Range, where: str) -> pa.Buffer:
        """The bytes of a range, checked. Raises DatasetError that begins with `where`."""
        ...

    def whole(self, entry: dict[str, Any]) -> pa.Buffer:
        """All bytes of a file, checked by its sha256. Raises DatasetError naming it."""
        ...


def block_range(row: dict[str, Any], table: str, number: int) -> Range:
    """The range of one block in a file of a shard."""
    block = row["blocks"][number]
    return Range(row[table], *(int(block[f"{table}_{what}"]) for what in ("offset", "bytes", "crc32")))


class LocalFiles:
    """Files under a folder, mapped into memory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._checked: set[tuple[str, int]] = set()
        self._map = lru_cache(maxsize=OPEN_FILES)(self._mapped)

    def range(self, part: Range, where: str) -> pa.Buffer:
        """The bytes of a range, without a copy."""
        buffer = self._map(part.path)
        if part.offset < 0 or part.size < 0 or part.offset + part.size > buffer.size:
            raise DatasetError(
                f"{where} lies at bytes {part.offset:,} to {part.offset + part.size:,} of a file of {buffer.size:,}; "
                "it was cut, restore it or build again"
            )
        found = buffer.slice(part.offset, part.size)
        if (part.path, part.offset) not in self._checked:
            check_crc32(found, part.crc32, where)
            self._checked.add((part.path, part.offset))
        return found

    def whole(self, entry: dict[str, Any]) -> pa.Buffer:
        """The mapped file, read once to check it."""
        buffer = self._map(str(entry["path"]))
        check_sha256(buffer, entry, str(self._root / entry["path"]))
        return buffer

    def _mapped(self, path: str) -> pa.Buffer:
        try:
            return pa.memory_map(str(self._root / path)).read_buffer()
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{self._root / path} cannot be read: {error}; restore it or build again") from None


def check_crc32(buffer: pa.Buffer, listed: int, where: str) -> None:
    """Raise DatasetError unless the bytes have the listed CRC-32."""
    found = zlib.crc32(buffer)
    if found != listed:
        raise DatasetError(
            f"{where} was altered: crc32 {found:08x}, the snapshot lists {listed:08x}; restore it or build again"
        )


def check_sha256(buffer: pa.Buffer, entry: dict[str, Any], name: str) -> None:
    """Raise DatasetError unless the bytes of a file are those listed."""
    found = hashlib.sha256(buffer).hexdigest()
    if found != entry["sha256"]:
        raise DatasetError(f"{name} was altered: sha256 {found[:12]}..., listed {str(entry['sha256'])[:12]}...")


def read_record_batch(
    buffer: pa.Buffer, number: int, schema: pa.Schema, included: Sequence[int] | None, where: str
) -> pa.RecordBatch:
    """The record batch of a checked range; included: columns to decode, None for all.

    The range of block 0 begins with the file's magic bytes and schema message; the others are one message each. Without
    `included` nothing is copied. Raises DatasetError that begins with `where`.
    """
    try:
        if included is None:
            source = pa.BufferReader(buffer)
            if number == 0:
                source.seek(MAGIC_BYTES)
                _check_schema(pa.ipc.read_schema(source), schema, where)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)
        else:
            batch = _stream_of(buffer, number, schema, included, where).read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise DatasetError(f"{where} cannot be read: {error}; build it again") from None
    return batch


def _stream_of(
    buffer: pa.Buffer, number: int, schema: pa.Schema, included: Sequence[int], where: str
) -> pa.RecordBatchStreamReader:
    """An Arrow stream of the one batch: only a stream's reader can leave columns out before they are decompressed."""
    options = pa.ipc.IpcReadOptions(included_fields=list(included), use_threads=False)
    if number == 0:
        found = pa.ipc.read_schema(buffer.slice(MAGIC_BYTES))
        _check_schema(found, schema, where)
        return pa.ipc.open_stream(buffer.slice(MAGIC_BYTES), options=options)
    joined = b"".join((memoryview(schema.serialize()), memoryview(buffer)))
    return pa.ipc.open_stream(pa.py_buffer(joined), options=options)


def _check_schema(found: pa.Schema, expected: pa.Schema, where: str) -> None:
    if not found.equals(expected):
        raise DatasetError(f"{where}: its columns are not those of the dataset's spec; build it again")
