"""Small files of a dataset as frames: Parquet for people, Arrow IPC for the incremental state and the vocabulary."""

from __future__ import annotations

import io

import polars as pl
import pyarrow as pa

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.disk import read_file, write_file
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.storage.store import Store


def read_frame(store: Store, entry: FileEntry, *, checksum: bool = False) -> pl.DataFrame:
    """Read a file that `write_frame` wrote.

    Args:
        store: The dataset.
        entry: The file.
        checksum: Also compare the SHA-256, not only the length.

    Returns:
        Its rows.

    Raises:
        DatasetError: The file is missing, damaged or altered.
    """
    data = read_file(store, entry, checksum=checksum)
    try:
        if entry.path.endswith(".parquet"):
            return pl.read_parquet(io.BytesIO(data))
        return pl.DataFrame(pl.from_arrow(pa.ipc.open_file(data).read_all()))
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise DatasetError(f"{store.name(entry.path)} cannot be read: {error}. Restore it or build again.") from None


def write_frame(
    store: Store, path: str, frame: pl.DataFrame, *, table: str | None = None, bucket: int | None = None
) -> FileEntry:
    """Write rows to a new file.

    Args:
        store: The dataset.
        path: The file; its suffix decides the format, `.parquet` or `.arrow`.
        frame: The rows.
        table: Table that the file is a part of.
        bucket: Bucket that the file is a part of.

    Returns:
        The entry for the snapshot.

    Raises:
        MachineError: The place cannot be written.
    """
    sink = io.BytesIO()
    if path.endswith(".parquet"):
        frame.write_parquet(sink, compression="zstd")
    else:
        frame.write_ipc(sink, compression="zstd", compat_level=pl.CompatLevel.oldest())
    return write_file(store, path, sink.getvalue(), frame.height, table=table, bucket=bucket)
