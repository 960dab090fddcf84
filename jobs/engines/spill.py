"""Rows split by bucket on this machine's disk, until their bucket is built."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.pipelines.arrays.narrow_ints import widen
from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.disk import disk_message


class Partition:
    """Frames of one kind, split by bucket on disk: a file per chunk, in it one encapsulated record batch per bucket.

    Where each bucket begins in each file is kept here, so that reading a bucket reads nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[pa.Schema, np.ndarray]] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True)

    def write(self, name: str, batches: list[pa.RecordBatch]) -> None:
        """Write one chunk's batches, one per bucket; empty ones take no room."""
        path = self.folder / name
        try:
            sizes = _write_batches(path, batches)
        except OSError as error:
            raise MachineError(disk_message(error, path)) from None
        with self._lock:
            self._files[name] = batches[0].schema, np.concatenate([[0], np.cumsum(sizes)])

    def read(self, bucket: int) -> pl.DataFrame | None:
        """Read all rows of one bucket, in the order of the chunks' names, or return None if there are none."""
        batches = []
        for name, (schema, offsets) in sorted(self._files.items()):
            start, end = (int(offset) for offset in offsets[bucket : bucket + 2])
            if end > start:
                batches.append(pa.ipc.read_record_batch(_read_range(self.folder / name, start, end), schema))
        return widen(batches) if batches else None


def _write_batches(path: Path, batches: list[pa.RecordBatch]) -> list[int]:
    """Write batches one behind the other; return the bytes of each, 0 of those without rows."""
    with path.open("xb") as file:
        return [file.write(batch.serialize()) if batch.num_rows else 0 for batch in batches]


def _read_range(path: Path, start: int, end: int) -> pa.Buffer:
    buffer = pa.allocate_buffer(end - start)
    handle = os.open(path, os.O_RDONLY)
    try:
        view, done = memoryview(buffer), 0
        while done < len(view) and (count := os.preadv(handle, [view[done:]], start + done)):
            done += count
    finally:
        os.close(handle)
    return buffer
