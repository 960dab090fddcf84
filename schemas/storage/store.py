"""One folder of files, on a disk or in an object store.

Everything that reads or writes a dataset goes through a `Store`. Its paths are relative and have forward slashes.
Committed files never change, so a store needs few operations: list, read, write a new file, delete, and
`create_exclusively`, which fails if the file exists. That last one is what makes a commit atomic, and `probe` checks
that the place supports it before any work is done.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa

from longbatch.schemas.errors import DatasetError

COPY_BYTES = 16 << 20  # in memory at once


# Not listed by any snapshot: leases of running attempts, and files of `probe` and `now`, which exist for a moment.
TEMPORARY_FOLDER = ".attempts"


@dataclass(frozen=True)
class StoredFile:
    """A file in a store.

    Attributes:
        path: Path relative to the store.
        size_bytes: Length of the file.
        modified: Time of the last write by the clock of the store, in seconds since 1970 UTC.
    """

    path: str
    size_bytes: int
    modified: float


class FileWriter(Protocol):
    """A new file that is written front to back. It appears complete at `close`, or not at all after `abort`."""

    def write(self, data: memoryview) -> None:
        """Append bytes; MachineError if they cannot be written."""
        ...

    def close(self) -> None:
        """Make the file durable and visible; MachineError if that fails."""
        ...

    def abort(self) -> None:
        """Remove the file, whether it was closed or not."""
        ...


class Store(ABC):
    """One folder of files. It can be pickled, and used by several threads.

    Attributes:
        location: The folder as the user wrote it, for messages. It contains no credentials.
    """

    location: str

    def name(self, path: str = "") -> str:
        """Return the full name of a file, for messages.

        Args:
            path: Path of the file; "" for the folder itself.
        """
        return f"{self.location}/{path}" if path else self.location

    @abstractmethod
    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """List the files of a folder and of all folders below it, in any order.

        Args:
            folder: The folder; "" for all files. A folder that does not exist has no files.

        Raises:
            MachineError: The place cannot be reached or read.
        """

    @abstractmethod
    def size(self, path: str) -> int:
        """Return the length of a file in bytes.

        Raises:
            FileNotFoundError: The file does not exist.
            MachineError: The place cannot be reached or read.
        """

    @abstractmethod
    def read_range(self, path: str, offset: int, size_bytes: int) -> pa.Buffer:
        """Read a range of a file.

        Args:
            path: The file.
            offset: First byte.
            size_bytes: Number of bytes.

        Returns:
            The bytes; fewer if the file ends before.

        Raises:
            FileNotFoundError: The file does not exist.
            MachineError: The place cannot be reached or read.
        """

    @abstractmethod
    def read(self, path: str) -> pa.Buffer:
        """Read a file.

        Raises:
            FileNotFoundError: The file does not exist.
            MachineError: The place cannot be reached or read.
        """

    @abstractmethod
    def open_input(self, path: str, size_bytes: int | None = None) -> pa.NativeFile:
        """Open a file for random access.

        Args:
            path: The file.
            size_bytes: Its length, if it is known, which saves a request.

        Raises:
            FileNotFoundError: The file does not exist.
            MachineError: The place cannot be reached or read.
        """

    def download(self, path: str, target: Path) -> None:
        """Copy a file to this machine; all bytes are of one version of it.

        Args:
            path: The file.
            target: The file to write.

        Raises:
            FileNotFoundError: The file does not exist.
            MachineError: The place cannot be read, or the target cannot be written.
        """
        with self.open_input(path) as source, target.open("wb") as file:
            while data := source.read(COPY_BYTES):
                file.write(data)

    @abstractmethod
    def create(self, path: str) -> FileWriter:
        """Begin a new file. Its name must be unique: two writers of one name are not kept apart everywhere.

        Raises:
            MachineError: The place cannot be written.
        """

    def write(self, path: str, data: bytes) -> None:
        """Write a new file, durably.

        Args:
            path: The file; see `create`.
            data: All of its bytes.

        Raises:
            MachineError: The place cannot be written.
        """
        writer = self.create(path)
        try:
            writer.write(memoryview(data))
            writer.close()
        except BaseException:
            writer.abort()
            raise

    @abstractmethod
    def create_exclusively(self, path: str, data: bytes) -> None:
        """Write a file atomically unless it exists: of any number of concurrent calls one succeeds.

        Args:
            path: The file.
            data: All of its bytes, which must differ between callers: after a lost answer the file is read back.

        Raises:
            FileExistsError: The file exists, with other bytes.
            MachineError: The place cannot be written.
        """

    @abstractmethod
    def open_replacement(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Open a new file that takes the place of an earlier one at the end of the block, unless there was an error.

        A reader sees the earlier file or the new one, never a part.

        Args:
            path: The file; it need not exist.

        Returns:
            A context manager that yields the new file, open for writing.

        Raises:
            MachineError: The place cannot be written.
        """

    def replace(self, path: str, data: bytes) -> None:
        """Write a file atomically, over an earlier one if there is one.

        Raises:
            MachineError: The place cannot be written.
        """
        with self.open_replacement(path) as file:
            file.write(data)

    @abstractmethod
    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, as far as they exist.

        Raises:
            MachineError: The place cannot be written.
        """

    @abstractmethod
    def probe(self) -> None:
        """Check that files can be written here and that `create_exclusively` works, in a moment.

        Raises:
            MachineError: They cannot; says what to do.
        """

    def check_writable(self) -> None:
        """Write and delete a file, so that a missing permission is found before any work is done.

        Raises:
            MachineError: The place cannot be written.
        """
        self.now(temporary_path("probe"))

    @abstractmethod
    def now(self, unique: str) -> float:
        """Read the clock that `StoredFile.modified` is measured by.

        Args:
            unique: Name of a file that nobody else writes; it is written and deleted.

        Returns:
            Seconds since 1970 UTC.
        """


def temporary_path(purpose: str) -> str:
    """Return a new path in the folder of temporary files.

    Args:
        purpose: The beginning of the name.
    """
    return f"{TEMPORARY_FOLDER}/{purpose}-{uuid.uuid4().hex[:12]}"


def check_path(path: str, location: str) -> str:
    """Check that a path stays inside its store.

    Args:
        path: Path relative to the store, possibly listed in a file that somebody else wrote.
        location: The store, for the message.

    Returns:
        The same path.

    Raises:
        DatasetError: It is absolute, or has an empty, "." or ".." part.
    """
    if "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise DatasetError(f"{path!r} is not a path inside {location}. The file that lists it was altered.")
    return path
