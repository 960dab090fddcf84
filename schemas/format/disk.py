"""Files of a dataset: written with their checksums, and compared with their entries in the snapshot."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import pyarrow as pa

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.storage.store import Store

from .manifest import FileEntry


class HashingFile:
    """A file that is written once, front to back, and keeps its length and checksums.

    It is a Python file object for pyarrow: `pa.PythonFile(HashingFile(store, path), mode="w")`.

    Args:
        store: The dataset.
        path: The file, which must not exist.
    """

    def __init__(self, store: Store, path: str) -> None:
        self.path = path
        self.size_bytes = 0
        self.crc32 = 0
        self.closed = False  # pyarrow reads this
        self._sha256 = hashlib.sha256()
        self._writer = store.create(path)

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        """Append bytes.

        Args:
            data: Bytes, or any other buffer.

        Returns:
            The number of bytes.

        Raises:
            MachineError: The place cannot be written; names the file.
        """
        view = memoryview(data)
        self._writer.write(view)
        # Both checksums are computed while the bytes are in the CPU cache, so no file is read again to hash it. SHA-256
        # identifies the file; CRC-32 is fast enough to check every block when it is read.
        self._sha256.update(view)
        self.crc32 = zlib.crc32(view, self.crc32)
        self.size_bytes += view.nbytes
        return view.nbytes

    def close(self) -> None:
        """Make the file durable and visible.

        Raises:
            MachineError: The place cannot be written; names the file.
        """
        if not self.closed:
            self.closed = True
            self._writer.close()

    def abort(self) -> None:
        """Remove the file, whether it was closed or not."""
        self.closed = True
        self._writer.abort()

    def flush(self) -> None:
        """Do nothing, because `close` flushes; pyarrow calls this."""

    def readable(self) -> bool:
        """Return False; pyarrow calls this."""
        return False

    def writable(self) -> bool:
        """Return True; pyarrow calls this."""
        return True

    def seekable(self) -> bool:
        """Return False; pyarrow calls this."""
        return False

    def entry(self) -> FileEntry:
        """Return the file's entry for the snapshot."""
        return FileEntry(self.path, self.size_bytes, self._sha256.hexdigest())


def write_file(
    store: Store, path: str, data: bytes, rows: int, *, table: str | None = None, bucket: int | None = None
) -> FileEntry:
    """Write a small file of a dataset, durably.

    Args:
        store: The dataset.
        path: The file.
        data: All of its bytes.
        rows: Number of its rows.
        table: Table that the file is a part of.
        bucket: Bucket that the file is a part of.

    Returns:
        The entry for the snapshot.

    Raises:
        MachineError: The place cannot be written; names the file.
    """
    store.write(path, data)
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest(), rows, table, bucket)


def check_file(store: Store, entry: FileEntry) -> None:
    """Check that a listed file is there, and that its length is the listed one.

    Args:
        store: The dataset.
        entry: The file as the snapshot lists it.

    Raises:
        DatasetError: The file is missing or has another length.
    """
    # The length costs one system call or request, and reveals truncation, the usual damage of an interrupted copy.
    try:
        size = store.size(entry.path)
    except FileNotFoundError:
        raise _missing(store, entry) from None
    _check_size(store, entry, size)


def read_file(store: Store, entry: FileEntry, *, checksum: bool = True) -> pa.Buffer:
    """Read a listed file and check it.

    Args:
        store: The dataset.
        entry: The file as the snapshot lists it.
        checksum: Also compare the SHA-256, not only the length.

    Returns:
        All bytes of the file; of a local file mapped memory.

    Raises:
        DatasetError: The file is missing, has another length, or was altered.
    """
    try:
        data = store.read(entry.path)
    except FileNotFoundError:
        raise _missing(store, entry) from None
    _check_size(store, entry, data.size)
    if checksum:
        check_sha256(data, entry, store.name(entry.path))
    return data


def check_sha256(buffer: pa.Buffer, entry: FileEntry, name: str) -> None:
    """Compare the bytes of a file with its listed SHA-256.

    Args:
        buffer: All bytes of the file.
        entry: The file as the snapshot lists it.
        name: Full name of the file, for the error.

    Raises:
        DatasetError: The file was altered.
    """
    sha256 = hashlib.sha256(memoryview(buffer)).hexdigest()
    if sha256 != entry.sha256:
        raise DatasetError(
            f"{name} was altered: its sha256 is {sha256[:12]}..., but the snapshot lists {entry.sha256[:12]}.... "
            "Restore it or build again."
        )


def _missing(store: Store, entry: FileEntry) -> DatasetError:
    return DatasetError(f"{store.name(entry.path)} is listed in the snapshot but missing. Restore it or build again.")


def _check_size(store: Store, entry: FileEntry, size: int) -> None:
    if size != entry.size_bytes:
        raise DatasetError(
            f"{store.name(entry.path)} has {size:,} bytes, but the snapshot lists {entry.size_bytes:,}. "
            "Restore it or build again."
        )
