"""Files on disk: durable writes, atomic replacement, and checks of listed files."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from longbatch.schemas.errors import DatasetError, MachineError

from .manifest import FileEntry


class HashingFile:
    """A file that is written once, front to back, and keeps its length and checksums.

    It is a Python file object for pyarrow: `pa.PythonFile(HashingFile(path), mode="w")`.

    Args:
        path: The file, which must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self.crc32 = 0
        self._sha256 = hashlib.sha256()
        # Exclusive creation: a retried attempt must never overwrite a file that a snapshot may already list.
        self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes) -> int:
        """Append bytes.

        Args:
            data: Bytes, or any other buffer.

        Returns:
            The number of bytes.

        Raises:
            MachineError: The disk is full or fails; names the file.
        """
        view = memoryview(data)
        try:
            self._file.write(view)
        except OSError as error:
            raise MachineError(disk_message(error, self.path)) from None
        # Both checksums are computed while the bytes are in the CPU cache, so no file is read again to hash it. SHA-256
        # identifies the file; CRC-32 is fast enough to check every block when it is read.
        self._sha256.update(view)
        self.crc32 = zlib.crc32(view, self.crc32)
        self.size_bytes += view.nbytes
        return view.nbytes

    def close(self) -> None:
        """Flush the file to the disk itself and close it.

        A committed snapshot must never list a file that a power failure could still lose.

        Raises:
            MachineError: The disk is full or fails; names the file.
        """
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise MachineError(disk_message(error, self.path)) from None
        finally:
            self._file.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed; pyarrow calls this."""
        return self._file.closed

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

    def entry(self, root: Path) -> FileEntry:
        """Return the file's entry for the snapshot of the dataset at `root`."""
        return FileEntry(self.path.relative_to(root).as_posix(), self.size_bytes, self._sha256.hexdigest())


def disk_message(error: OSError, path: Path) -> str:
    """Describe a failed write: file, cause and remedy.

    Args:
        error: What the system reported.
        path: File or folder that was written.

    Returns:
        The message of a MachineError.
    """
    return f"cannot write {path}: {error.strerror or error}. Free space there and run again. Nothing was committed."


def file_entry(root: Path, path: Path, rows: int, *, table: str | None = None, bucket: int | None = None) -> FileEntry:
    """Flush a small file that was just written to the disk itself, and return its entry.

    Args:
        root: Root of the dataset.
        path: The file, under the root.
        rows: Number of its rows.
        table: Table that the file is a part of.
        bucket: Bucket that the file is a part of.

    Returns:
        The entry for the snapshot.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        # fsync flushes all pages of the file, also those that another library wrote through its own descriptor.
        os.fsync(file.fileno())
    return FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, digest, rows, table, bucket)


def check_file(root: Path, entry: FileEntry, *, checksum: bool = False) -> Path:
    """Check that a listed file is there, and that its length is the listed one.

    Args:
        root: Root of the dataset.
        entry: The file as the snapshot lists it.
        checksum: Also compare the SHA-256 of the file, which reads all of it.

    Returns:
        The path of the file.

    Raises:
        DatasetError: The file is missing, has another length, or was altered.
    """
    path = root / entry.path
    # The length costs one system call and reveals truncation, the usual damage of an interrupted copy.
    try:
        size = path.stat().st_size
    except OSError:
        raise DatasetError(f"{path} is listed in the snapshot but missing. Restore it or build again.") from None
    if size != entry.size_bytes:
        raise DatasetError(
            f"{path} has {size:,} bytes, but the snapshot lists {entry.size_bytes:,}. Restore it or build again."
        )
    if checksum:
        with path.open("rb") as file:
            compare_sha256(hashlib.file_digest(file, "sha256").hexdigest(), entry, str(path))
    return path


def compare_sha256(sha256: str, entry: FileEntry, name: str) -> None:
    """Compare a computed checksum with the listed one.

    Args:
        sha256: Computed SHA-256, in hexadecimal digits.
        entry: The file as the snapshot lists it.
        name: Path or URI of the file, for the error.

    Raises:
        DatasetError: The checksums differ.
    """
    if sha256 != entry.sha256:
        raise DatasetError(
            f"{name} was altered: its sha256 is {sha256[:12]}..., but the snapshot lists {entry.sha256[:12]}.... "
            "Restore it or build again."
        )


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk itself.

    Args:
        path: The file.
        data: All of its bytes.

    Raises:
        FileExistsError: The file exists.
    """
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk itself, so that a new or renamed file survives a power failure.

    Args:
        folder: The folder.
    """
    # On POSIX a name belongs to the folder: fsync of the file flushes its bytes, but not the entry that names it.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def hidden_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside `target`, and remove it at the end unless it was renamed.

    Args:
        target: The folder that the hidden one is going to become.

    Yields:
        The hidden folder, which is empty and on the same file system.
    """
    # Beside the target, because a rename is atomic only within one file system; the random part of the name keeps
    # concurrent processes apart.
    folder = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}")
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `target` at the end, unless there was an error.

    A reader sees the previous file or the new one, never a part, and a power failure loses neither.

    Args:
        target: The file to replace; it need not exist.

    Yields:
        The new file, open for writing.
    """
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}")
    try:
        with partial.open("xb") as file:
            yield file
            # The order matters: a rename that reaches the disk before the bytes would leave an empty file.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def replace_folder(finished: Path, target: Path) -> None:
    """Rename a folder to `target`, and remove the folder that had this name.

    Args:
        finished: A folder beside the target.
        target: The final name. If the rename fails, the earlier folder is put back.
    """
    if not target.exists():
        finished.rename(target)
        return
    # A rename cannot replace a folder that is not empty, so the earlier one is moved out of the way first.
    with hidden_folder(target) as replaced:
        target.rename(replaced)
        try:
            finished.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
