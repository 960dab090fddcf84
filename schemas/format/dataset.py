"""Open a dataset: its counts and schemas, its blocks, and a scan with one row per request without copying histories."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.accounting import Counts
from longbatch.schemas.arrow import list_column
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.open_store import Location, is_url, open_store
from longbatch.schemas.storage.store import Store
from longbatch.schemas.tables import event_type, requests_schema, timelines_schema
from longbatch.schemas.types import ArrowArray

from .disk import read_file
from .local_files import Files, files_of
from .physical_schema import ALL_FIELDS, Fields
from .remote_cache import RemoteFiles, RemoteRoot
from .shard_reader import Block, ShardReader
from .shards_table import ShardsTable
from .snapshot import Snapshot, read_snapshot


@dataclass(frozen=True)
class Dataset:
    """A committed snapshot of a dataset. It contains only numbers and paths, so it can be pickled.

    Attributes:
        store: Where the dataset is.
        snapshot: The snapshot.
        remote: How a remote dataset is cached.
    """

    store: Store
    snapshot: Snapshot
    remote: RemoteRoot | None = None

    @property
    def location(self) -> str:
        """Folder or URL of the dataset."""
        return self.store.location

    @property
    def spec(self) -> BuildSpec:
        """The build spec of the dataset."""
        return self.snapshot.spec

    @property
    def fingerprint(self) -> str:
        """Hash of the content, which does not depend on where the dataset is."""
        return self.snapshot.fingerprint

    @property
    def counts(self) -> Counts:
        """Numbers of users, requests, targets and events."""
        return self.snapshot.counts

    @property
    def timelines_schema(self) -> pa.Schema:
        """Columns of the timelines files."""
        return timelines_schema(self.spec)

    @property
    def requests_schema(self) -> pa.Schema:
        """Columns of the requests files."""
        return requests_schema(self.spec)

    @property
    def schema(self) -> pa.Schema:
        """Columns of `scan`: those of requests, with `history` instead of the columns that point to it."""
        pointers = ("segment", "timeline_row", "history_end")
        fields = [field for field in self.requests_schema if field.name not in pointers]
        return pa.schema([*fields[:-1], pa.field("history", pa.list_view(event_type(self.spec))), fields[-1]])

    @property
    def shards(self) -> ShardsTable:
        """Shards of the snapshot, in order."""
        return self.snapshot.shards

    def shard(self, number: int, fields: Fields = ALL_FIELDS, files: Files | None = None) -> ShardReader:
        """Open the files of a shard.

        Args:
            number: Index of the shard.
            fields: Fields of events and targets to read; by default all.
            files: Reads the bytes; by default a new reader of local or remote files.

        Returns:
            A reader of the shard's blocks.

        Raises:
            DatasetError: A file is missing or was altered.
        """
        if files is None and self.remote is not None:
            files = self.open_files()
        return ShardReader(self.store, self.shards[number], self.spec, fields, files)

    def open_files(self) -> Files:
        """Return a new reader of the shards' bytes, for the process that calls."""
        return files_of(self.store) if self.remote is None else RemoteFiles(self.remote)

    def blocks(self) -> Iterator[Block]:
        """Read all blocks in order, one at a time.

        Yields:
            Blocks, each checked.
        """
        for number in range(len(self.shards)):
            reader = self.shard(number)
            for block in range(reader.num_blocks):
                yield reader.block(block)

    def scan(self, history_length: int | None = None) -> Iterator[pa.RecordBatch]:
        """Read all requests with their histories.

        `history` is a list view into the block's timelines: histories of a user overlap in one values buffer, so
        nothing is copied, whatever the history length.

        Args:
            history_length: Newest events of each history, up to the built length, which is the default.

        Yields:
            One record batch per block, with one row per request.

        Raises:
            SpecError: The history length is out of range.

        Example:
            >>> dataset = open_dataset("dataset")
            >>> batch = next(dataset.scan(history_length=100))
            >>> batch.schema.names
            ['request_id', 'user_id', 'request_time', 'tab', 'history', 'targets']
            >>> max(len(history) for history in batch["history"].to_pylist())
            100
        """
        length = check_history_length(self.spec, history_length)
        for block in self.blocks():
            yield _with_history(block, length, self.schema)

    def vocabulary(self) -> pa.Table:
        """Read all (id, string) pairs of hashed strings.

        Returns:
            A table of ids and strings.

        Raises:
            DatasetError: A file is missing or not readable.
        """
        columns: dict[str, pa.DataType] = {"id": pa.int64(), "string": pa.string()}
        schema = pa.schema(columns)
        tables = [schema.empty_table()]
        for entry in self.snapshot.vocabulary:
            data = read_file(self.store, entry, checksum=False)
            try:
                tables.append(pa.ipc.open_file(data).read_all().cast(schema))
            except (pa.ArrowException, OSError, ValueError) as error:
                name = self.store.name(entry.path)
                raise DatasetError(f"{name} is not the Arrow file that was written: {error}. Build it again.") from None
        return pa.concat_tables(tables)


def open_dataset(path: Location | RemoteRoot, snapshot: int | None = None) -> Dataset:
    """Open a dataset.

    Opening lists the folders of a local dataset and checks that the files of all shards exist, but not the other files
    (vocabulary, quarantine, samples, state). The length of a file is compared when its shard is read for the first
    time, and the checksum of a block when the block is. A remote dataset's files are not looked up.

    Args:
        path: A folder, a URL, a URL with settings of its cache, or a store, which is read without a cache.
        snapshot: Number of the snapshot; by default the newest.

    Returns:
        The dataset.

    Raises:
        DatasetError: The dataset does not exist, a file is missing or altered, or the format is unknown; names the
            file.
        MachineError: A remote store does not answer.

    Example:
        >>> dataset = open_dataset("dataset")
        >>> dataset.counts.users, dataset.spec.history_length
        (18, 10000)
    """
    if is_url(path):
        path = RemoteRoot(str(path))
    if isinstance(path, RemoteRoot):
        return Dataset(path.store, read_snapshot(path.store, snapshot), path)
    store = open_store(path)
    dataset = Dataset(store, read_snapshot(store, snapshot))
    if isinstance(store, LocalStore):
        _check_files_exist(store.root, dataset.shards)
    return dataset


def _check_files_exist(root: Path, shards: ShardsTable) -> None:
    """Raise DatasetError if a file of a shard is missing, so that it is reported now and not hours into a training."""
    # Names only: one listing of each folder, where lengths would take one system call, or request of a network file
    # system, for each of 400,000 files.
    names = [path for folder in shards.folders() for path in _listed(root, folder)]
    paths = shards.paths()
    is_missing = pc.invert(pc.is_in(paths.cast(pa.binary()), value_set=pa.array(names, pa.binary())))
    if pc.any(is_missing).as_py():
        path = root / paths.filter(is_missing)[0].as_py()
        raise DatasetError(f"{path} is listed in the snapshot but missing. Restore it or build again.")


def _listed(root: Path, folder: str) -> list[bytes]:
    """Paths of the files in a folder of the dataset, relative to its root; none if there is no such folder."""
    # As bytes, because the names of files that the snapshot does not list need not be UTF-8.
    try:
        names = os.listdir(os.fsencode(root / folder))
    except OSError:
        return []
    prefix = os.fsencode(f"{folder}/" if folder else "")
    return [prefix + name for name in names]


def check_history_length(spec: BuildSpec, history_length: int | None) -> int:
    """Check a history length.

    Args:
        spec: Build spec of the dataset.
        history_length: Newest events of each history; None for the built length.

    Returns:
        The history length to read.

    Raises:
        SpecError: It is negative or greater than the built length.
    """
    if history_length is None:
        return spec.history_length
    if not 0 <= history_length <= spec.history_length:
        raise SpecError(
            f"history_length {history_length:,} is not between 0 and {spec.history_length:,}, "
            "the history_length of the dataset's spec. Use a smaller one, or build with a larger one."
        )
    return history_length


def _with_history(block: Block, length: int, schema: pa.Schema) -> pa.RecordBatch:
    """Replace the pointers of requests by list views: offset and size of each request's slice of the events.

    Example:
        timelines      offsets 0 5 6              two timelines, of 5 events and 1
        requests       timeline_row 0, history_end 4, length 3
        list view      offset 1, size 3           from 0 + 4 - 3
    """
    # List views, unlike lists, may overlap: many histories point into one timeline without a copy of its events.
    events = list_column(block.timelines, "events")
    row, end = block.requests["timeline_row"], block.requests["history_end"]
    sizes = pc.min_element_wise(end, pa.scalar(length, pa.int32()))
    offsets = pc.subtract(pc.add(events.offsets.slice(0, len(events)).take(row), end), sizes)
    # The stubs lack the parameters `sizes` and `type`.
    make = cast("Callable[..., ArrowArray]", pa.ListViewArray.from_arrays)
    history = make(offsets, sizes, events.values, type=schema.field("history").type)
    columns = {**{name: block.requests[name] for name in block.requests.schema.names}, "history": history}
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def user_requests(dataset: Dataset, user_id: int) -> pa.Table:
    """Read all requests of a user.

    Args:
        dataset: The dataset.
        user_id: The user; the hash if the log's ids are strings.

    Returns:
        Rows as `Dataset.scan` yields them.

    Raises:
        DatasetError: The dataset has no request of the user.
    """
    # A full scan that keeps one user's rows; a dataset has no index by user, because training never looks one up.
    wanted = pa.scalar(user_id, pa.int64())
    batches = []
    for batch in dataset.scan():
        is_user = pc.equal(batch["user_id"], wanted)
        if pc.any(is_user).as_py():
            batches.append(batch.filter(is_user))
    if not batches:
        raise DatasetError(f"user {user_id} is not in {dataset.location}: the dataset has no request of this user.")
    return pa.Table.from_batches(batches)
