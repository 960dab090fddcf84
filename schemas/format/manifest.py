"""The records of a snapshot: its files, its shards and their blocks.

A snapshot lists every file of a dataset with its length and checksum. Small files (vocabulary, quarantine, samples,
incremental state) are entries of the snapshot's JSON. Shards are rows of an Arrow table beside it, see `shards_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast, get_args

from longbatch.schemas.errors import DatasetError

BlockTable = Literal["timelines", "requests"]
CountName = Literal["segments", "events", "requests", "targets", "history_events"]

BLOCK_TABLES: tuple[BlockTable, ...] = get_args(BlockTable)
ShardTable = Literal["timelines", "requests", "dictionaries"]
SHARD_TABLES: tuple[ShardTable, ...] = get_args(ShardTable)
COUNT_NAMES: tuple[CountName, ...] = get_args(CountName)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the dataset, as the snapshot lists it.

    Attributes:
        path: Path relative to the dataset, with forward slashes.
        size_bytes: Length of the file.
        sha256: Checksum of the file, in hexadecimal digits.
        rows: Number of rows; None for the files of a shard, whose blocks are counted one by one.
        table: Table that the file is a part of, for samples and incremental state.
        bucket: Bucket that the file is a part of, for the vocabulary and incremental state.
    """

    path: str
    size_bytes: int
    sha256: str
    rows: int | None = None
    table: str | None = None
    bucket: int | None = None

    def as_dict(self) -> dict[str, str | int]:
        """Return the entry as it is stored in JSON, without the fields that are None."""
        document = {
            "table": self.table,
            "bucket": self.bucket,
            "path": self.path,
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "rows": self.rows,
        }
        return {key: value for key, value in document.items() if value is not None}

    @classmethod
    def from_dict(cls, document: object, where: str) -> FileEntry:
        """Read an entry back from JSON.

        Args:
            document: What `as_dict` returned.
            where: File and key that the document comes from, for errors.

        Returns:
            The entry.

        Raises:
            DatasetError: A key is missing, unknown, or of another type.
        """
        # Types are compared exactly: `isinstance` would accept a JSON boolean as an integer.
        types = {"table": str, "bucket": int, "path": str, "bytes": int, "sha256": str, "rows": int}
        if (
            not isinstance(document, dict)
            or not {"path", "bytes", "sha256"} <= document.keys() <= types.keys()
            or any(type(value) is not types[key] for key, value in document.items())
        ):
            raise DatasetError(
                f"{where}: {document!r} is not a valid file entry. Restore the snapshot or build the dataset again."
            )
        return cls(size_bytes=document["bytes"], **{key: document[key] for key in document if key != "bytes"})


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Where a block is in its file: offset and length in bytes, and the CRC-32 of these bytes."""

    offset: int
    size_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block of a shard: the number of its records, and its byte ranges in the timelines and requests files.

    Attributes:
        segments: Rows of the timelines table.
        events: Events of these timelines.
        requests: Rows of the requests table.
        targets: Targets of these requests.
        history_events: Sum of the history lengths of these requests.
        first_request_time: Earliest request.
        last_request_time: Latest request.
    """

    segments: int
    events: int
    requests: int
    targets: int
    history_events: int
    first_request_time: datetime
    last_request_time: datetime
    timelines_offset: int
    timelines_bytes: int
    timelines_crc32: int
    requests_offset: int
    requests_bytes: int
    requests_crc32: int

    def count(self, name: CountName) -> int:
        """Return one of the counts by its name."""
        return cast(int, getattr(self, name))

    def byte_range(self, table: BlockTable) -> ByteRange:
        """Return where the block is in the file of a table."""
        if table == "timelines":
            return ByteRange(self.timelines_offset, self.timelines_bytes, self.timelines_crc32)
        return ByteRange(self.requests_offset, self.requests_bytes, self.requests_crc32)


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard: its files, its blocks in order, and totals over the blocks.

    Attributes:
        bucket: User bucket. Appended datasets have several shards of a bucket.
        dictionaries: File of the shard's dictionaries; None where the spec needs none.
    """

    bucket: int
    timelines: FileEntry
    requests: FileEntry
    dictionaries: FileEntry | None
    total_segments: int
    total_events: int
    total_requests: int
    total_targets: int
    total_history_events: int
    first_request_time: datetime
    last_request_time: datetime
    blocks: tuple[BlockEntry, ...]

    @classmethod
    def from_blocks(cls, bucket: int, files: Sequence[FileEntry], blocks: Sequence[BlockEntry]) -> ShardEntry:
        """Make the entry of a shard from what was written, and sum up its blocks.

        Args:
            bucket: User bucket.
            files: Files of timelines, requests and, where there are any, dictionaries.
            blocks: At least one block, in the order of the files.

        Returns:
            The entry.
        """
        timelines, requests, *dictionaries = files
        return cls(
            bucket=bucket,
            timelines=timelines,
            requests=requests,
            dictionaries=dictionaries[0] if dictionaries else None,
            total_segments=sum(block.segments for block in blocks),
            total_events=sum(block.events for block in blocks),
            total_requests=sum(block.requests for block in blocks),
            total_targets=sum(block.targets for block in blocks),
            total_history_events=sum(block.history_events for block in blocks),
            first_request_time=min(block.first_request_time for block in blocks),
            last_request_time=max(block.last_request_time for block in blocks),
            blocks=tuple(blocks),
        )

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Files of timelines and requests, and of dictionaries if the shard has them."""
        files = (self.timelines, self.requests, self.dictionaries)
        return tuple(entry for entry in files if entry is not None)

    def file(self, table: BlockTable) -> FileEntry:
        """Return the file of timelines or of requests."""
        return self.timelines if table == "timelines" else self.requests

    @property
    def sort_key(self) -> tuple[int, str]:
        """Order of the shards in a snapshot: by bucket, then by file name."""
        return self.bucket, self.timelines.path
