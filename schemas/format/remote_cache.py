"""Read datasets of object stores: blocks are requested through a bounded local cache that processes share.

Of the shards only the listed byte ranges are requested, each into a file of its own. A range is checked when it
arrives and again by every process that maps it.

A cached file appears complete or not at all: it is written as an unnamed temporary file and linked at the end, so a
killed process leaves nothing behind. When the cache is over its limit, the files used longest ago are evicted; on
Linux a file that is mapped stays readable.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.storage.object_store import ATTEMPTS
from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store

from .disk import read_file
from .local_files import OPEN_FILES, check_crc32, request_range
from .manifest import ByteRange, FileEntry

DEFAULT_LIMIT_BYTES = 16 << 30


@dataclass(frozen=True)
class RemoteRoot:
    """Where a remote dataset is, and how it is cached.

    Attributes:
        uri: URL of the dataset, such as `s3://bucket/dataset`.
        cache: Folder of the cache; by default `longbatch-<user>` in the system's folder for temporary files.
        limit_bytes: Size limit of the cache.
        attempts: Number of attempts of a request, with exponential backoff.
        storage: Settings of the store, such as `endpoint`, `region` or credentials; see `open_store`.
    """

    uri: str
    cache: Path | None = None
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    attempts: int = ATTEMPTS
    storage: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def store(self) -> Store:
        """The store."""
        return open_store(self.uri, self.storage, self.attempts)

    @property
    def folder(self) -> Path:
        """Folder of this dataset in the cache; every URI has its own."""
        base = self.cache or Path(tempfile.gettempdir()) / f"longbatch-{os.getuid()}"
        return base / hashlib.sha256(self.uri.encode()).hexdigest()[:24]


class RemoteFiles:
    """Reads listed ranges of a remote dataset through the cache.

    Args:
        remote: The dataset and its cache.
    """

    def __init__(self, remote: RemoteRoot) -> None:
        self._store, self._limit_bytes = remote.store, remote.limit_bytes
        self._folder = remote.folder / "ranges"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._mapped = lru_cache(maxsize=OPEN_FILES)(self._fetched)

    def read_range(self, path: str, byte_range: ByteRange, where: str) -> pa.Buffer:
        """Return a range from the cache or the store; see `Files`."""
        return self._mapped(path, byte_range, where)

    def read_file(self, entry: FileEntry) -> pa.Buffer:
        """Fetch a file; it is not cached on disk, because a reader keeps what it decodes from it; see `Files`."""
        return read_file(self._store, entry)

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
        data = request_range(self._store, path, byte_range, where)
        check_crc32(data, crc32, where)
        _write_atomically(local, data)
        self._evict(keep=local)
        return data

    def _evict(self, keep: Path) -> None:
        """Evict the files used longest ago until the cache is within its limit."""
        # Least recently used first, by modification time: access times are not kept on most mounts. Other processes
        # evict from the same folder, so a file may vanish at any time.
        entries = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        excess = sum(size for _, size, _ in entries) - self._limit_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            if path != str(keep):
                with suppress(FileNotFoundError):
                    os.unlink(path)
                excess -= size


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
