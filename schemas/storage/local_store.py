"""A folder of this machine: durable writes, atomic replacement, and hard links as exclusive creation."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

import pyarrow as pa

from longbatch.schemas.errors import MachineError

from .local_folders import atomic_file, disk_message, open_new, sync_folder, write_durably
from .store import FileWriter, Store, StoredFile, check_path, temporary_path

# What link(2) reports on file systems without hard links: FUSE mounts of object stores, some network shares, FAT.
NO_LINKS = {errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EINVAL}


class LocalStore(Store):
    """A folder of this machine, or of a network file system that it has mounted.

    Args:
        root: The folder, which need not exist: the first file creates it.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.location = str(root)

    def __repr__(self) -> str:
        return f"LocalStore({self.location!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStore) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def path(self, path: str = "") -> Path:
        """Return the path of a file on this machine.

        Args:
            path: Path relative to the store; "" for the folder itself.

        Raises:
            DatasetError: The path leaves the folder.
        """
        return self.root / check_path(path, self.location) if path else self.root

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """List files below a folder, links to files included; see `Store`."""
        try:
            entries = list(os.scandir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise MachineError(f"cannot read {self.path(folder)}: {error.strerror or error}.") from None
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            with suppress(FileNotFoundError):  # deleted meanwhile
                if entry.is_dir(follow_symlinks=False):
                    yield from self.list_files(path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    yield StoredFile(path, status.st_size, status.st_mtime)

    def size(self, path: str) -> int:
        """Return the length of a file; see `Store`."""
        try:
            return self.path(path).stat().st_size
        except NotADirectoryError:
            raise FileNotFoundError(self.name(path)) from None

    def read(self, path: str) -> pa.Buffer:
        """Map a file into memory, without a copy; see `Store`."""
        try:
            return pa.memory_map(str(self.path(path))).read_buffer()
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise MachineError(f"cannot read {self.path(path)}: {error}.") from None

    def read_range(self, path: str, offset: int, size_bytes: int) -> pa.Buffer:
        """Map a range of a file into memory; see `Store`."""
        return self.read(path).slice(offset, size_bytes)

    def open_input(self, path: str, size_bytes: int | None = None) -> pa.NativeFile:
        """Open a file; see `Store`."""
        try:
            return pa.OSFile(str(self.path(path)), "rb")
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise MachineError(f"cannot read {self.path(path)}: {error}.") from None

    def create(self, path: str) -> FileWriter:
        """Begin a new file, and create its folder if need be; FileExistsError if the file exists; see `Store`."""
        return _LocalFile(self.path(path), self.root)

    def create_exclusively(self, path: str, data: bytes) -> None:
        """Write a temporary file and link it to its name, which fails if the name exists; see `Store`.

        An interrupted call removes the file again if it is its own.
        """
        final = self.path(path)
        # Not beside the final file, where a vacuum would take it for one of an ended attempt.
        staged = self.path(temporary_path("staged"))
        try:
            write_durably(staged, data)
            final.parent.mkdir(parents=True, exist_ok=True)
            # link(2) is atomic and fails if the name exists, where a rename would silently replace the other's file.
            os.link(staged, final)
            sync_folder(final.parent)
        except BaseException as error:
            # An interrupt may arrive after the link. The name is only removed if it is a link to this call's file.
            if staged.exists() and final.exists() and final.samefile(staged):
                final.unlink()
            if isinstance(error, OSError) and not isinstance(error, FileExistsError):
                raise MachineError(disk_message(error, final)) from None
            raise
        finally:
            self.delete([staged.relative_to(self.root).as_posix()])

    @contextmanager
    def open_replacement(self, path: str) -> Iterator[IO[bytes]]:
        """Open a hidden file that is renamed at the end; see `Store`."""
        target = self.path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as file:
                yield file
        except OSError as error:
            raise MachineError(disk_message(error, target)) from None

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, and folders that become empty; see `Store`."""
        folders = set()
        for path in paths:
            folders.add(self.path(path).parent)
            try:
                self.path(path).unlink(missing_ok=True)
            except NotADirectoryError:
                continue
            except OSError as error:
                raise MachineError(f"cannot delete {self.path(path)}: {error.strerror or error}.") from None
        for folder in folders:
            _remove_empty(folder, self.root)

    def probe(self) -> None:
        """Create a file in the folder and a second name for it; see `Store`."""
        staged = self.path(temporary_path("probe"))
        linked = staged.with_name(f"{staged.name}-link")
        try:
            write_durably(staged, b"probe")
            os.link(staged, linked)
        except OSError as error:
            if error.errno == errno.EROFS or isinstance(error, PermissionError):
                advice = "It is read-only for this user. Choose another folder, or change its permissions."
            elif staged.exists() and error.errno in NO_LINKS:
                advice = (
                    "A commit needs hard links, which this file system does not have. If it is the mount of an object "
                    "store, name the store itself (s3://, gs://, az://, abfss://). Otherwise choose a local disk."
                )
            else:
                advice = "Free space there, or choose another folder."
            raise MachineError(
                f"cannot write a dataset to {self.root}: {error.strerror or error}. {advice} Nothing was done."
            ) from None
        finally:
            for path in (linked, staged):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            _remove_empty(staged.parent, self.root)

    def now(self, unique: str) -> float:
        """Read the clock of the disk, which a network file system does not share with this machine; see `Store`."""
        path = self.path(unique)
        write_durably(path, b"")
        try:
            return path.stat().st_mtime
        finally:
            self.delete([unique])


class _LocalFile:
    """A new file on a disk; see `FileWriter`."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path, self._root = path, root
        try:
            self._file: BinaryIO = open_new(path)
        except FileExistsError:
            raise
        except OSError as error:
            raise MachineError(disk_message(error, path)) from None

    def write(self, data: memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise MachineError(disk_message(error, self._path)) from None

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.flush()
            # A committed snapshot must never list a file that a power failure could still lose.
            os.fsync(self._file.fileno())
        except OSError as error:
            raise MachineError(disk_message(error, self._path)) from None
        finally:
            self._file.close()

    def abort(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)
        _remove_empty(self._path.parent, self._root)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder below the root, and those above it, as far as they are empty."""
    with suppress(OSError):
        while folder != root and root in folder.parents:
            folder.rmdir()
            folder = folder.parent
