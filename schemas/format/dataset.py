"""Opening a dataset: what is in it, its blocks, and one row per request with its history, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.accounting import Counts
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, requests_schema, timelines_schema

from .disk import check_file
from .local_files import Files, LocalFiles
from .manifest import ShardEntry
from .physical_schema import ALL_FIELDS, Fields
from .remote_cache import RemoteFiles, RemoteRoot
from .shard_reader import Block, ShardReader
from .snapshot import Snapshot, read_snapshot


@dataclass(frozen=True)
class Dataset:
    """A committed snapshot of a dataset. Holds numbers and paths only: it can be pickled and sent anywhere."""

    path: Path
    snapshot: Snapshot
    remote: RemoteRoot | None = None

    @property
    def spec(self) -> BuildSpec:
        """The build spec the dataset was made by."""
        return self.snapshot.spec

    @property
    def fingerprint(self) -> str:
        """Hash of the content, the same wherever the dataset lies."""
        return self.snapshot.fingerprint

    @property
    def counts(self) -> Counts:
        """Users, requests, targets, events."""
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
        """Columns of `scan`: those of requests, with `history` in place of what points to it."""
        pointing = ("segment", "timeline_row", "history_end")
        fields = [field for field in self.requests_schema if field.name not in pointing]
        return pa.schema([*fields[:-1], pa.field("history", pa.list_view(event_type(self.spec))), fields[-1]])

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        """Shards of the snapshot, in order."""
        return self.snapshot.shards

    def shard(self, number: int, fields: Fields = ALL_FIELDS, files: Files | None = None) -> ShardReader:
        """Open the files of one shard, to read all fields of events and targets or those given; `files` reads bytes."""
        if files is None and self.remote is not None:
            files = self.open_files()
        return ShardReader(self.path, self.shards[number], self.spec, fields, files)

    def open_files(self) -> Files:
        """What reads the bytes of the shards, opened in the process that calls."""
        return LocalFiles(self.path) if self.remote is None else RemoteFiles(self.remote)

    def blocks(self) -> Iterator[Block]:
        """Read all blocks in order, one at a time."""
        for number, shard in enumerate(self.shards):
            reader = self.shard(number)
            for block in range(len(shard.blocks)):
                yield reader.block(block)

    def scan(self, history_length: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield one record batch per block, one row per request, `history` a list_view into the block's timelines.

        Histories of one user overlap in one values buffer: nothing is copied, whatever the history length,
        which may be anything up to the built one (the default).
        """
        length = check_history_length(self.spec, history_length)
        for block in self.blocks():
            yield _with_history(block, length, self.schema)

    def vocabulary(self) -> pa.Table:
        """All (id, text) pairs of hashed text."""
        schema = pa.schema({"id": pa.int64(), "string": pa.string()})
        tables = [schema.empty_table()]
        for entry in self.snapshot.vocabulary:
            path = check_file(self.path, entry)
            try:
                tables.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all().cast(schema))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DatasetError(f"{path} is not the Arrow file that was written: {error}; build it again") from None
        return pa.concat_tables(tables)


def open_dataset(path: str | Path | RemoteRoot, snapshot: int | None = None) -> Dataset:
    """Open a dataset at its newest snapshot, or at the one given: a folder, a URI, or a URI with a cache of its own.

    Raises DatasetError naming the file if there is none, it was altered, or its format is not known; MachineError if
    a remote store stays away.
    """
    if isinstance(path, str) and "://" in path:
        path = RemoteRoot(path)
    if isinstance(path, RemoteRoot):
        return Dataset(Path(path.uri), read_snapshot(path.mirror(), snapshot), path)
    root = Path(path)
    dataset = Dataset(root, read_snapshot(root, snapshot))
    for shard in dataset.shards:
        for entry in shard.files:
            check_file(root, entry)
    return dataset


def check_history_length(spec: BuildSpec, history_length: int | None) -> int:
    """Return the history length to read at; raise SpecError unless it is within 0 and the built one."""
    if history_length is None:
        return spec.history_length
    if not 0 <= history_length <= spec.history_length:
        raise SpecError(
            f"history_length {history_length:,} is not between 0 and {spec.history_length:,}, "
            "the length the dataset was built for; build it with a larger one"
        )
    return history_length


def _with_history(block: Block, length: int, schema: pa.Schema) -> pa.RecordBatch:
    """Turn timeline_row and history_end into list views: offset and size of each request's slice."""
    events = block.timelines["events"]
    row, end = block.requests["timeline_row"], block.requests["history_end"]
    sizes = pc.min_element_wise(end, pa.scalar(length, pa.int32()))
    offsets = pc.subtract(pc.add(events.offsets.slice(0, len(events)).take(row), end), sizes)
    history = pa.ListViewArray.from_arrays(offsets, sizes, events.values, type=schema.field("history").type)
    columns = {**{name: block.requests[name] for name in block.requests.schema.names}, "history": history}
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def user_requests(dataset: Dataset, user_id: int) -> pa.Table:
    """All requests of one user, as `scan` yields them. Raises DatasetError if the user is not in the dataset."""
    found = [
        batch.filter(pc.equal(batch["user_id"], user_id))
        for batch in dataset.scan()
        if pc.any(pc.equal(batch["user_id"], user_id)).as_py()
    ]
    if not found:
        raise DatasetError(f"user {user_id} is not in {dataset.path}: no request of that user was built")
    return pa.Table.from_batches(found)
