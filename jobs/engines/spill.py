"""Rows that are split by bucket on this machine's disk until their bucket is built."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.disk_errors import writing
from longbatch.pipelines.arrays.narrow_ints import widen
from longbatch.schemas.ragged import offsets_of


class Partition:
    """Frames of equal columns, split by bucket: one file per chunk, with one Arrow record batch per bucket.

    The offsets of the buckets in each file are kept in memory, so that reading a bucket reads nothing else.

    Args:
        folder: Folder of the files, which must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[pa.Schema, npt.NDArray[np.integer]]] = {}
        self._lock = threading.Lock()
        with writing(folder):
            folder.mkdir(parents=True)

    def write(self, name: str, batches: list[pa.RecordBatch]) -> None:
        """Write one chunk; call it from any thread.

        Args:
            name: Name of the chunk, which decides the order of rows when a bucket is read.
            batches: One batch per bucket; empty ones take no space.

        Raises:
            MachineError: The disk is full.
        """
        # External partitioning: one file per chunk, with its buckets one after the other. One file per bucket and chunk
        # would be millions of small files, and one per bucket would need a lock around every write.
        path = self.folder / name
        with writing(path):
            sizes = _write_batches(path, batches)
        # Sizes become offsets, (buckets + 1,); a bucket without rows starts where it ends. In 32 bits if they
        # fit, because with thousands of chunks and buckets these offsets are most of the memory.
        offsets = offsets_of(np.array(sizes))
        with self._lock:
            self._files[name] = batches[0].schema, offsets.astype(np.uint32) if offsets[-1] < 1 << 32 else offsets

    def read(self, bucket: int) -> pl.DataFrame | None:
        """Read all rows of one bucket.

        Args:
            bucket: Number of the bucket.

        Returns:
            Rows in the order of the names of the chunks; None if there are none.
        """
        # Sorted by name, so that the kernel sees rows in the order of the input, in whatever order threads wrote them.
        batches = []
        for name, (schema, offsets) in sorted(self._files.items()):
            start, end = (int(offset) for offset in offsets[bucket : bucket + 2])
            if end > start:
                batches.append(pa.ipc.read_record_batch(_read_range(self.folder / name, start, end), schema))
        return widen(batches) if batches else None


def _write_batches(path: Path, batches: list[pa.RecordBatch]) -> list[int]:
    """Write batches one after the other; return the bytes of each, 0 for those without rows."""
    # Messages without a stream around them: the schema is kept in memory, and each message can be read on its own.
    with path.open("xb") as file:
        return [file.write(batch.serialize()) if batch.num_rows else 0 for batch in batches]


def _read_range(path: Path, start: int, end: int) -> pa.Buffer:
    # Read straight into Arrow's memory, so that the batch refers to this buffer without another copy.
    buffer = pa.allocate_buffer(end - start)
    handle = os.open(path, os.O_RDONLY)
    try:
        view, done = memoryview(buffer), 0
        # A read may return fewer bytes than requested, at most 2 GiB on Linux.
        while done < len(view) and (count := os.preadv(handle, [view[done:]], start + done)):
            done += count
    finally:
        os.close(handle)
    return buffer
