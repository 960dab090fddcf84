"""A prefix of an object store: S3, Google Cloud Storage or Azure, through `obstore`.

A new file is collected in a temporary file of this machine and uploaded when it is closed, in parts if it is large, so
that an object appears complete or not at all. Exclusive creation is a conditional put (`If-None-Match: *`).

Requests that fail are repeated with exponential backoff. Credentials come from the environment or from `options`; they
are in no message, and never in a dataset.
"""

from __future__ import annotations

import io
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import obstore
import pyarrow as pa
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from longbatch.schemas.errors import MachineError

from .local_folders import disk_message
from .read_process import ReadProcess
from .store import FileWriter, Store, StoredFile, check_path, temporary_path

T = TypeVar("T")
Client = S3Store | GCSStore | AzureStore

ATTEMPTS = 6
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 10.0
SPOOL_BYTES = 32 << 20  # a new file up to this size is collected in memory
PART_BYTES = 16 << 20  # of an upload in parts; S3 allows 10,000 parts
PARALLEL_PARTS = 4
READ_AHEAD_BYTES = 1 << 20
LIST_PAGE = 1000  # objects that a store lists in one answer
MAX_DELETES = 1000  # what one bulk request of S3 deletes
# What obstore reports as a general error: refused listings, and the tokens that S3 answers with status 400.
DENIED = re.compile(r"status code: 40[13] |<Code>(ExpiredToken|InvalidToken|TokenRefreshRequired)</Code>")

# obstore's threads do not survive a fork: a request in a forked process would wait forever.
_started_in: int | None = None


class ObjectStore(Store):
    """A prefix of a bucket or container.

    Args:
        url: `s3://`, `gs://` or `az://` URL, as `obstore` knows it.
        location: The URL as the user wrote it, for messages.
        options: Settings of the client by obstore's names, such as `region`, `endpoint` and credentials. What is not
            given comes from the environment, such as `AWS_ACCESS_KEY_ID`.
        attempts: Number of attempts of a request.
    """

    def __init__(
        self, url: str, location: str, options: Mapping[str, str] | None = None, attempts: int = ATTEMPTS
    ) -> None:
        self.url, self.location, self.attempts = url, location, attempts
        self.options = tuple(sorted((options or {}).items()))

    def __repr__(self) -> str:
        return f"ObjectStore({self.location!r})"  # without the options, which can be credentials

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.url, self.options))

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """List the objects below a prefix, 1,000 a request; see `Store`."""
        pages: Iterator[Sequence[Mapping[str, Any]]] | None = None
        last: str | None = None

        def next_page(client: Client) -> Sequence[Mapping[str, Any]] | None:
            nonlocal pages
            # An iterator that raised is at its end, so that a repeated call would miss the rest: start another one.
            pages = pages or iter(obstore.list(client, folder or None, offset=last, chunk_size=LIST_PAGE))
            try:
                return next(pages, None)
            except BaseException:
                pages = None
                raise

        while page := self._request(folder, next_page):
            for meta in page:
                yield StoredFile(meta["path"], meta["size"], meta["last_modified"].timestamp())
            last = page[-1]["path"]

    def size(self, path: str) -> int:
        """Ask for the length of an object; see `Store`."""
        return self._request(path, lambda client: obstore.head(client, path)["size"])

    def read(self, path: str) -> pa.Buffer:
        """Read an object; see `Store`."""
        check_path(path, self.location)
        if _is_forked():
            return _read_process(self).read(path, None)
        return self._request(path, lambda client: pa.py_buffer(obstore.get(client, path).bytes()))

    def read_range(self, path: str, offset: int, size_bytes: int) -> pa.Buffer:
        """Read a range of an object; see `Store`."""
        check_path(path, self.location)
        if not size_bytes:
            return pa.py_buffer(b"")
        if _is_forked():
            return _read_process(self).read(path, (offset, size_bytes))
        return self._request(
            path, lambda client: pa.py_buffer(obstore.get_range(client, path, start=offset, length=size_bytes))
        )

    def open_input(self, path: str, size_bytes: int | None = None) -> pa.NativeFile:
        """Open an object for random access, with read-ahead; see `Store`."""
        size = self.size(path) if size_bytes is None else size_bytes
        # pyarrow reads any Python file; its stub wants an IOBase.
        return pa.PythonFile(cast(io.IOBase, io.BufferedReader(_RangeReader(self, path, size), READ_AHEAD_BYTES)))

    def download(self, path: str, target: Path) -> None:
        """Copy an object by one request, because a later request may get a newer version; see `Store`."""
        check_path(path, self.location)

        def fetch(client: Client) -> None:
            with target.open("wb") as file:
                for data in obstore.get(client, path).stream(min_chunk_size=PART_BYTES):
                    try:
                        file.write(data)
                    except OSError as error:  # of the disk, so another attempt cannot help
                        raise MachineError(disk_message(error, target)) from None

        self._request(path, fetch)

    def create(self, path: str) -> FileWriter:
        """Begin a new object; see `Store`."""
        return _Upload(self, check_path(path, self.location))

    def upload(self, path: str, file: IO[bytes]) -> None:
        """Write an object from a file, in parts if it is large.

        Args:
            path: The object.
            file: The content; it is read from its start.

        Raises:
            MachineError: The store cannot be written.
        """

        def put(client: Client) -> None:
            file.seek(0)
            obstore.put(client, path, file, chunk_size=PART_BYTES, max_concurrency=PARALLEL_PARTS)

        self._request(path, put)

    def create_exclusively(self, path: str, data: bytes) -> None:
        """Put an object that must not exist; see `Store`."""
        check_path(path, self.location)
        try:
            self._request(path, lambda client: obstore.put(client, path, data, mode="create", use_multipart=False))
        except FileExistsError:
            # A request that was answered by an error or by nothing may have been carried out; then its repetition
            # finds its own object.
            if self._holds(path, data):
                return
            raise
        except MachineError:
            if self._holds(path, data):
                return
            raise
        except BaseException:
            # Interrupted: as on a disk, the object is removed again if it is this call's own.
            with suppress(MachineError):
                if self._holds(path, data):
                    self.delete([path])
            raise

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self.read(path).to_pybytes() == data
        except FileNotFoundError:
            return False

    @contextmanager
    def open_replacement(self, path: str) -> Iterator[IO[bytes]]:
        """Open a temporary file that is uploaded at the end; see `Store`."""
        check_path(path, self.location)
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as file:
            try:
                yield cast(IO[bytes], file)
            except OSError as error:
                raise MachineError(self._spool_message(path, error)) from None
            self.upload(path, cast(IO[bytes], file))

    def _spool_message(self, path: str, error: OSError) -> str:
        return (
            f"cannot collect {self.name(path)} in {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free space there, or set TMPDIR. Nothing was committed."
        )

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, up to 1,000 a request; see `Store`."""
        names = [check_path(path, self.location) for path in paths]
        for first in range(0, len(names), MAX_DELETES):
            some = names[first : first + MAX_DELETES]
            try:
                self._request(some[0], lambda client: obstore.delete(client, some))  # noqa: B023
            except FileNotFoundError:
                # Google reports an object that is gone, and obstore then leaves others out.
                for name in some:
                    with suppress(FileNotFoundError):
                        self._request(name, lambda client: obstore.delete(client, name))  # noqa: B023

    def probe(self) -> None:
        """Create an object twice; the second time must fail; see `Store`."""
        path = temporary_path("probe")

        def create(data: bytes) -> None:
            self._request(path, lambda client: obstore.put(client, path, data, mode="create", use_multipart=False))

        try:
            # If the answer is lost, the repeated request finds its own object.
            with suppress(FileExistsError):
                create(b"1")
            try:
                create(b"2")
            except FileExistsError:
                return
            raise MachineError(
                f"{self.location} cannot hold a dataset: the store does not support conditional writes "
                "(If-None-Match), which a commit needs. Choose another store. Nothing was done."
            )
        except exceptions.NotSupportedError as error:
            raise MachineError(f"{self.location} cannot hold a dataset: {_reason(error)}. Nothing was done.") from None
        finally:
            with suppress(MachineError):
                self.delete([path])

    def now(self, unique: str) -> float:
        """Read the clock of the store from a new object; see `Store`."""
        self.replace(unique, b"")
        modified = self._request(unique, lambda client: obstore.head(client, unique)["last_modified"])
        self.delete([unique])
        return modified.timestamp()

    def _request(self, path: str, call: Callable[[Client], T]) -> T:
        """Call the client, with retries; raise the errors of `Store`."""
        if _is_forked():
            raise MachineError(
                f"{self.name(path)}: a process that was forked after the store was used can only read files. "
                'Start it with multiprocessing\'s "spawn" or "forkserver".'
            )
        for attempt in range(1, self.attempts + 1):
            try:
                return call(_client(self))
            except FileNotFoundError:
                raise FileNotFoundError(self.name(path)) from None
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                raise FileExistsError(self.name(path)) from None
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise self._denied(path, error) from None
            except (exceptions.GenericError, exceptions.JoinError, OSError) as error:
                if DENIED.search(str(error)):
                    raise self._denied(path, error) from None
                if attempt == self.attempts:
                    raise MachineError(
                        f"{self.name(path)}: the store did not answer in {attempt} attempts: {_reason(error)}. "
                        "Check the store and your network connection, then run again."
                    ) from None
                wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
                # Jitter, so that workers do not all retry at once; from a generator of its own, so that a caller's
                # random numbers stay the same.
                time.sleep(wait * random.Random().uniform(0.5, 1.0))
        raise MachineError(f"{self.location}: attempts is {self.attempts}, but must be 1 or more.")

    def _denied(self, path: str, error: BaseException) -> MachineError:
        return MachineError(
            f"{self.name(path)}: access denied ({_reason(error)}). Check the credentials in the environment, "
            "or pass them as `storage` options."
        )


class _Upload:
    """A new object, collected in a temporary file until it is complete; see `FileWriter`."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store, self._path, self._is_uploaded = store, path, False
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - closed by `close` or `abort`

    def write(self, data: memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise MachineError(self._store._spool_message(self._path, error)) from None

    def close(self) -> None:
        if self._file.closed:
            return
        with self._file:
            self._store.upload(self._path, cast(IO[bytes], self._file))
            self._is_uploaded = True

    def abort(self) -> None:
        self._file.close()
        if self._is_uploaded:
            with suppress(MachineError):
                self._store.delete([self._path])


class _RangeReader(io.RawIOBase):
    """Random access to an object by range requests."""

    def __init__(self, store: ObjectStore, path: str, size_bytes: int) -> None:
        self._store, self._path, self._size, self._position = store, path, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, target: Any) -> int:  # noqa: ANN401 - any buffer
        view = memoryview(target).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        view[:count] = memoryview(self._store.read_range(self._path, self._position, count)).cast("B")
        self._position += count
        return count


@lru_cache(maxsize=64)
def _client(store: ObjectStore) -> Client:
    """The client of a store; one per process, because connections are kept open and are shared by threads."""
    global _started_in
    _started_in = os.getpid()
    options = dict(store.options)
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        return cast(
            Client,
            kinds[store.url.split(":")[0]].from_url(
                store.url,
                config=options,
                # http:// endpoints are of test servers and private networks; the user named them.
                client_options={"allow_http": True, "timeout": timedelta(seconds=120)},
                # Short: `_request` repeats too, also what obstore does not, such as a body that was cut off.
                retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=30)},
            ),
        )
    except (exceptions.BaseError, ValueError) as error:
        raise MachineError(f"{store.location}: {_reason(error)}. Check the URL and the `storage` options.") from None


def _is_forked() -> bool:
    return _started_in is not None and _started_in != os.getpid()


@lru_cache(maxsize=8)
def _read_process_of(store: ObjectStore, process: int) -> ReadProcess:
    return ReadProcess(store.url, store.location, dict(store.options), store.attempts)


def _read_process(store: ObjectStore) -> ReadProcess:
    # By process, because one that forks again must not share the pipe.
    return _read_process_of(store, os.getpid())


def _reason(error: BaseException) -> str:
    """The first line of an error, without query strings, which can contain signatures."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"\?[^\s\"')]*", "", lines[0]).rstrip(".")[:500]
