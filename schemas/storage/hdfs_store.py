"""A folder of HDFS, through pyarrow and the cluster's own libhdfs.

HDFS has no conditional put, but its rename fails if the target exists. So exclusive creation writes a hidden file and
renames it, as the commit protocols of Hadoop do.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import IO, cast

import pyarrow as pa
from pyarrow import fs

from longbatch.schemas.errors import MachineError

from .store import FileWriter, Store, StoredFile, check_path, temporary_path


class HdfsStore(Store):
    """A folder of HDFS.

    Args:
        url: `hdfs://host:port/folder`.
    """

    def __init__(self, url: str) -> None:
        self.location = url

    def __repr__(self) -> str:
        return f"HdfsStore({self.location!r})"

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """List files below a folder; see `Store`."""
        system, root = self._connect()
        selector = fs.FileSelector(f"{root}/{folder}" if folder else root, allow_not_found=True, recursive=True)
        try:
            infos = system.get_file_info(selector)
        except OSError as error:
            raise self._error(folder, error) from None
        for info in infos:
            if info.type == fs.FileType.File:
                modified = (info.mtime_ns or 0) / 1e9
                yield StoredFile(info.path.split(f"{root}/", 1)[1], info.size or 0, modified)

    def size(self, path: str) -> int:
        """Return the length of a file; see `Store`."""
        system, root = self._connect()
        try:
            info = system.get_file_info(f"{root}/{check_path(path, self.location)}")
        except OSError as error:
            raise self._error(path, error) from None
        if info.type != fs.FileType.File:
            raise FileNotFoundError(self.name(path))
        return info.size or 0

    def read(self, path: str) -> pa.Buffer:
        """Read a file; see `Store`."""
        with self.open_input(path) as file:
            return pa.py_buffer(file.read())

    def read_range(self, path: str, offset: int, size_bytes: int) -> pa.Buffer:
        """Read a range of a file; see `Store`."""
        with self.open_input(path) as file:
            file.seek(offset)
            return pa.py_buffer(file.read(size_bytes))

    def open_input(self, path: str, size_bytes: int | None = None) -> pa.NativeFile:
        """Open a file; see `Store`."""
        system, root = self._connect()
        try:
            return system.open_input_file(f"{root}/{check_path(path, self.location)}")
        except FileNotFoundError:
            raise FileNotFoundError(self.name(path)) from None
        except OSError as error:
            raise self._error(path, error) from None

    def create(self, path: str) -> FileWriter:
        """Begin a new file; see `Store`."""
        return _HdfsFile(self, path)

    def create_exclusively(self, path: str, data: bytes) -> None:
        """Write a temporary file and rename it, which fails if the name exists; see `Store`."""
        staged = self._staged(path)
        self.write(staged, data)
        system, root = self._connect()
        try:
            system.move(f"{root}/{staged}", f"{root}/{path}")
        except OSError as error:
            with suppress(FileNotFoundError):
                if self.read(path).to_pybytes() == data:
                    return
                raise FileExistsError(self.name(path)) from None
            raise self._error(path, error) from None
        finally:
            with suppress(MachineError):
                self.delete([staged])

    @contextmanager
    def open_replacement(self, path: str) -> Iterator[IO[bytes]]:
        """Write a hidden file, delete the earlier one and rename; see `Store`. For a moment there is no file."""
        staged = self._staged(path)
        system, root = self._connect()
        writer = _HdfsFile(self, staged)
        try:
            yield cast(IO[bytes], writer.stream)
            writer.close()
            self.delete([path])
            system.move(f"{root}/{staged}", f"{root}/{path}")
        except OSError as error:
            raise self._error(path, error) from None
        finally:
            with suppress(MachineError):
                self.delete([staged])

    def _staged(self, path: str) -> str:
        """A unique hidden name beside a file."""
        folder, _, name = check_path(path, self.location).rpartition("/")
        hidden = f".{name}-{uuid.uuid4().hex[:12]}"
        return f"{folder}/{hidden}" if folder else hidden

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; see `Store`."""
        system, root = self._connect()
        for path in paths:
            try:
                with suppress(FileNotFoundError):
                    system.delete_file(f"{root}/{check_path(path, self.location)}")
            except OSError as error:
                raise self._error(path, error) from None

    def probe(self) -> None:
        """Create a file twice; the second time must fail; see `Store`."""
        path = temporary_path("probe")
        try:
            self.create_exclusively(path, b"1")
            with suppress(FileExistsError):
                self.create_exclusively(path, b"2")
                raise MachineError(
                    f"{self.location} cannot hold a dataset: a rename replaces an existing file there, but a commit "
                    "needs it to fail. Nothing was done."
                )
        finally:
            with suppress(MachineError):
                self.delete([path])

    def now(self, unique: str) -> float:
        """Read the clock of the name node; see `Store`."""
        self.write(unique, b"0")
        system, root = self._connect()
        modified = system.get_file_info(f"{root}/{unique}").mtime_ns or 0
        self.delete([unique])
        return modified / 1e9

    def _connect(self) -> tuple[fs.FileSystem, str]:
        try:
            return _file_system(self.location)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MachineError(
                f"cannot reach {self.location}: {error}. Set HADOOP_HOME, JAVA_HOME and CLASSPATH as pyarrow's page on "
                "HDFS describes."
            ) from None

    def _error(self, path: str, error: OSError) -> MachineError:
        return MachineError(f"{self.name(path)}: HDFS reports: {error}.")


class _HdfsFile:
    """A new file of HDFS; see `FileWriter`."""

    def __init__(self, store: HdfsStore, path: str) -> None:
        self._store, self._path = store, path
        system, root = store._connect()
        self._full_path = f"{root}/{check_path(path, store.location)}"
        try:
            system.create_dir(self._full_path.rpartition("/")[0], recursive=True)
            self.stream = system.open_output_stream(self._full_path)
        except OSError as error:
            raise store._error(path, error) from None

    def write(self, data: memoryview) -> None:
        try:
            self.stream.write(data)
        except OSError as error:
            raise self._store._error(self._path, error) from None

    def close(self) -> None:
        try:
            self.stream.close()
        except OSError as error:
            raise self._store._error(self._path, error) from None

    def abort(self) -> None:
        with suppress(OSError):
            self.stream.close()
        with suppress(MachineError):
            self._store.delete([self._path])


@lru_cache(maxsize=16)
def _file_system(url: str) -> tuple[fs.FileSystem, str]:
    system, root = fs.FileSystem.from_uri(url)
    return system, root.rstrip("/")
