"""Write one shard: the Arrow IPC files of one user bucket, and its entry for the snapshot.

The files of timelines and requests have the same number of record batches; batch `i` of both is block `i`.
`physical_schema` defines their columns, and docs/format.md describes the files for readers in other languages.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import IOBase
from itertools import tee
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.spec.build_spec import BuildSpec, Compression
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ArrowListArray

from .disk import HashingFile
from .encoder import encode_blocks
from .manifest import BLOCK_TABLES, BlockEntry, ByteRange, FileEntry, ShardEntry
from .physical_schema import Batches, stored_requests_schema, stored_timelines_schema

# Level 3 makes files 14-20 % smaller than Arrow's default level 1, and reading is as fast.
ZSTD_LEVEL = 3


def codec_of(compression: Compression) -> pa.Codec | None:
    """Return the Arrow codec of a spec's compression.

    Args:
        compression: "zstd", "lz4" or "none".

    Returns:
        The codec, with longbatch's compression level; None for "none".
    """
    if compression == "none":
        return None
    return pa.Codec("zstd", compression_level=ZSTD_LEVEL) if compression == "zstd" else pa.Codec("lz4")


class _TableWriter:
    """Writes one file of a shard."""

    def __init__(self, store: Store, path: str, schema: pa.Schema, compression: Compression) -> None:
        self.file = HashingFile(store, path)
        try:
            options = pa.ipc.IpcWriteOptions(compression=codec_of(compression), use_threads=False)
            self._sink = pa.PythonFile(cast(IOBase, self.file), mode="w")  # needs no more than HashingFile has
            self._writer = pa.ipc.new_file(self._sink, schema, options=options)
        except BaseException:
            self.discard()
            raise

    def write(self, batch: pa.RecordBatch) -> ByteRange:
        """Append a record batch and return where it is."""
        # The CRC-32 starts at 0 for each batch, so that it covers the bytes of this block only.
        offset, self.file.crc32 = self.file.size_bytes, 0
        # The first range also covers the magic bytes and the schema, which are only written with the first batch.
        self._writer.write_batch(batch)
        return ByteRange(offset, self.file.size_bytes - offset, self.file.crc32)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self.file.close()

    def discard(self) -> None:
        """Remove the file after an error."""
        self.file.abort()


def write_shard(
    store: Store, bucket: int, attempt: str, spec: BuildSpec, blocks: Iterable[Batches]
) -> ShardEntry | None:
    """Write the blocks of a user bucket; on an error all files of the shard are removed.

    Args:
        store: The dataset.
        bucket: User bucket, the first part of the file names.
        attempt: The second part of the file names. It must be unique, so that a retried task never overwrites
            an earlier attempt's files.
        spec: Build spec, which decides columns, encoding and compression.
        blocks: Pairs of timelines and requests, in the columns of `timelines_schema` and `requests_schema`.

    Returns:
        The entry for the snapshot, or None if there are no blocks: then no file is written.

    Raises:
        DataError: A dictionary is too large for the format.
        MachineError: The disk is full or fails; names the file.
    """
    name = f"{bucket:05d}-{attempt}.arrow"
    schemas = {"timelines": stored_timelines_schema(spec), "requests": stored_requests_schema(spec)}
    tables: list[_TableWriter] = []
    entries: list[BlockEntry] = []
    # Block entries count the logical rows, which the encoded blocks no longer show.
    logical, blocks = tee(blocks)
    try:
        dictionaries, stored = encode_blocks(spec, blocks)
        for (timelines, requests), batches in zip(logical, stored, strict=True):
            if not tables:
                for table in BLOCK_TABLES:  # one by one, so that an error also removes the file opened before
                    tables.append(_TableWriter(store, f"{table}/{name}", schemas[table], spec.compression))  # noqa: PERF401
            ranges = tables[0].write(batches[0]), tables[1].write(batches[1])
            entries.append(_block_entry(timelines, requests, ranges, spec.history_length))
        if dictionaries is not None:
            tables.append(_TableWriter(store, f"dictionaries/{name}", dictionaries.schema, spec.compression))
            tables[2].write(dictionaries)
        for writer in tables:
            writer.close()
    except BaseException:
        for writer in tables:
            writer.discard()
        raise
    files: list[FileEntry] = [writer.file.entry() for writer in tables]
    return ShardEntry.from_blocks(bucket, files, entries) if files else None


def _block_entry(
    timelines: pa.RecordBatch, requests: pa.RecordBatch, ranges: tuple[ByteRange, ByteRange], history_length: int
) -> BlockEntry:
    # A history is limited by the built length, so its events are the smaller of both.
    first_last = pc.min_max(requests["request_time"])
    lengths = pc.min_element_wise(requests["history_end"], history_length)
    return BlockEntry(
        segments=timelines.num_rows,
        events=len(cast(ArrowListArray, timelines["events"]).flatten()),
        requests=requests.num_rows,
        targets=len(cast(ArrowListArray, requests["targets"]).flatten()),
        history_events=pc.sum(lengths.cast(pa.int64())).as_py() or 0,
        first_request_time=first_last["min"].as_py(),
        last_request_time=first_last["max"].as_py(),
        timelines_offset=ranges[0].offset,
        timelines_bytes=ranges[0].size_bytes,
        timelines_crc32=ranges[0].crc32,
        requests_offset=ranges[1].offset,
        requests_bytes=ranges[1].size_bytes,
        requests_crc32=ranges[1].crc32,
    )
