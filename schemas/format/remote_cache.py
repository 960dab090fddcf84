"""Read datasets by URI: blocks are streamed through a bounded local cache that processes share.

Snapshots are small and are copied into the cache when the dataset is opened. Of the shards only the listed byte ranges
are fetched, each into a file of its own. A range is checked when it arrives and again by every process that maps it.

A cached file appears complete or not at all: it is written as an unnamed temporary file and linked at the end, so a
killed process leaves nothing behind. When the cache is over its limit, the files used longest ago are evicted; on
Linux a file that is mapped stays readable.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

import pyarrow as pa
from pyarrow import fs

from longbatch.schemas.errors import DatasetError, MachineError

from .local_files import OPEN_FILES, check_crc32, check_sha256
from .manifest import ByteRange, FileEntry

T = TypeVar("T")
ATTEMPTS = 5
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 10.0
DEFAULT_LIMIT_BYTES = 16 << 30


@dataclass(frozen=True)
class RemoteRoot:
    """Where a remote dataset is, and how it is cached.

    Attributes:
        uri: URI of the dataset, such as `s3://bucket/dataset?region=...`.
        cache: Folder of the cache; by default `longbatch-<user>` in the system's folder for temporary files.
        limit_bytes: Size limit of the cache.
        attempts: Number of attempts of a read, with exponential backoff.
    """

    uri: str
    cache: Path | None = None
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    attempts: int = ATTEMPTS

    @property
    def folder(self) -> Path:
        """Folder of this dataset in the cache; every URI has its own."""
        base = self.cache or Path(tempfile.gettempdir()) / f"longbatch-{os.getuid()}"
        return base / hashlib.sha256(self.uri.encode()).hexdigest()[:24]

    def mirror(self) -> Path:
        """Copy the snapshots into the cache.

        Returns:
            The folder in the cache, a root for `read_snapshot`.

        Raises:
            DatasetError: The URI is not valid.
            MachineError: The store does not answer, or the disk of the cache is full.
        """
        store, root = _connect(self)
        target = self.folder / "snapshots"
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        selector = fs.FileSelector(f"{root}/snapshots")
        infos = _with_retries(self, "snapshots", lambda: store.get_file_info(selector))
        # Names with a dot are snapshots that another process is about to commit.
        names = {
            info.base_name for info in infos if info.type == fs.FileType.File and not info.base_name.startswith(".")
        }
        for name in sorted(names):
            # Shards tables have unique names and never change. A JSON file changes if the dataset is built again.
            if name.endswith(".json") or not (target / name).exists():
                data = _with_retries(self, name, lambda: _read(store, f"{root}/snapshots/{name}"))  # noqa: B023
                _write_atomically(target / name, data)
        for removed in {path.name for path in target.iterdir()} - names:
            (target / removed).unlink(missing_ok=True)
        return self.folder


class RemoteFiles:
    """Reads listed ranges of a remote dataset. Open it in the process that reads; it cannot be pickled.

    Args:
        remote: The dataset and its cache.
    """

    def __init__(self, remote: RemoteRoot) -> None:
        self._remote, self._folder = remote, remote.folder / "ranges"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store: tuple[fs.FileSystem, str] | None = None
        self._mapped = lru_cache(maxsize=OPEN_FILES)(self._fetched)

    def read_range(self, path: str, byte_range: ByteRange, where: str) -> pa.Buffer:
        """Return a range from the cache or the store; see `Files`."""
        return self._mapped(path, byte_range, where)

    def read_file(self, entry: FileEntry) -> pa.Buffer:
        """Fetch a file; it is not cached on disk, because a reader keeps what it decodes from it; see `Files`."""
        data = self._read(entry.path, 0, entry.size_bytes)
        check_sha256(data, entry, f"{self._remote.uri}/{entry.path}")
        return data

    def _fetched(self, path: str, byte_range: ByteRange, where: str) -> pa.Buffer:
        # The checksum is part of the name, so that a dataset that was built again never gets bytes of the earlier one.
        offset, size, crc32 = byte_range.offset, byte_range.size_bytes, byte_range.crc32
        name = hashlib.sha256(f"{path} {offset} {size} {crc32}".encode()).hexdigest()[:32]
        local = self._folder / name
        # A cached file that is missing, damaged or just evicted by another process is not an error but a miss.
        with suppress(OSError, DatasetError, pa.ArrowException):
            cached = pa.memory_map(str(local)).read_buffer()
            check_crc32(cached, crc32, where)
            os.utime(local)  # eviction is by time of last use
            return cached
        data = self._read(path, offset, size)
        check_crc32(data, crc32, where)
        _write_atomically(local, data)
        self._evict(keep=local)
        return data

    def _read(self, path: str, offset: int, size: int) -> pa.Buffer:
        def read() -> pa.Buffer:
            # Connected on first use, in the process that reads: clients of object stores do not survive a fork.
            store, root = self._store = self._store or _connect(self._remote)
            with store.open_input_file(f"{root}/{path}") as file:
                read_at = cast("Callable[[int, int], bytes]", file.read_at)  # its stub lacks the offset
                data = read_at(size, offset) if size else b""
            if len(data) != size:
                raise OSError(f"the store returned {len(data):,} of {size:,} bytes")
            return pa.py_buffer(data)

        return _with_retries(self._remote, path, read)

    def _evict(self, keep: Path) -> None:
        """Evict the files used longest ago until the cache is within its limit."""
        # Least recently used first, by modification time: access times are not kept on most mounts. Other processes
        # evict from the same folder, so a file may vanish at any time.
        entries = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        excess = sum(size for _, size, _ in entries) - self._remote.limit_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            if path != str(keep):
                with suppress(FileNotFoundError):
                    os.unlink(path)
                excess -= size


def _connect(remote: RemoteRoot) -> tuple[fs.FileSystem, str]:
    try:
        store, root = fs.FileSystem.from_uri(remote.uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{remote.uri} is not a readable URI: {error}. Check the URI.") from None
    return store, root.rstrip("/")


def _read(store: fs.FileSystem, path: str) -> pa.Buffer:
    with store.open_input_file(path) as file:
        return pa.py_buffer(file.read())


def _with_retries(remote: RemoteRoot, path: str, read: Callable[[], T]) -> T:
    """Read with retries: exponential backoff with jitter, so that workers do not retry all at once."""
    for attempt in range(1, remote.attempts + 1):
        try:
            return read()
        except FileNotFoundError:
            raise DatasetError(
                f"{remote.uri}/{path} is listed in the snapshot but missing. Restore it or build again."
            ) from None
        except (OSError, pa.ArrowException) as error:
            if attempt == remote.attempts:
                raise MachineError(
                    f"{remote.uri}/{path} could not be read in {attempt} attempts: {error}. "
                    "Check the store and your network connection, then resume."
                ) from None
            wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            time.sleep(wait * random.Random().uniform(0.5, 1.0))
    raise MachineError(f"{remote.uri}: attempts is {remote.attempts}, but must be 1 or more.")


def _write_atomically(path: Path, data: pa.Buffer) -> None:
    """Write a file that appears complete or not at all: as an unnamed temporary file that is linked at the end."""
    # O_TMPFILE: the kernel frees a file without a name when its process dies, so that nothing is left behind. The link
    # through /proc names it without special privileges, see open(2). The file is created in the folder of its final
    # name, because a link cannot cross file systems.
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        handle = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(os.dup(handle), "wb") as file:
                file.write(memoryview(data))
            # A link never replaces a file: a damaged range or an older snapshot of this name is removed first.
            path.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another process wrote the same bytes first
                os.link(f"/proc/self/fd/{handle}", path.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(handle)
            os.close(folder)
    except OSError as error:
        raise MachineError(
            f"cannot write {path}: {error.strerror or error}. Free space there, or choose another cache."
        ) from None
