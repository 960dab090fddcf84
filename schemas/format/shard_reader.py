"""Read the blocks of one shard; every block is checked when it is read for the first time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import pyarrow as pa

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import Store

from .decoder import Decoder
from .dictionaries import Columns, dictionaries_schema, read_dictionaries
from .disk import check_file, read_file
from .local_files import Files, LocalFiles, files_of, read_record_batch
from .manifest import BLOCK_TABLES, BlockTable, ShardEntry
from .physical_schema import ALL_FIELDS, Batches, Fields, stored_requests_schema, stored_timelines_schema
from .shard_checks import check_history_slices, check_no_nulls

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """A pair of record batches: the timelines, and the requests that point into them."""

    timelines: pa.RecordBatch
    requests: pa.RecordBatch


class ShardReader:
    """Reads blocks of one shard. Open it in the process that reads; it cannot be pickled.

    Args:
        store: The dataset.
        shard: Entry of the snapshot.
        spec: Build spec of the dataset.
        fields: Fields of events and targets to read and decode. Blocks then contain only these.
        files: Reads the bytes; by default a new reader without a cache.

    Raises:
        DatasetError: A file is missing, altered, or not what the snapshot lists.
    """

    def __init__(
        self,
        store: Store,
        shard: ShardEntry,
        spec: BuildSpec,
        fields: Fields = ALL_FIELDS,
        files: Files | None = None,
    ) -> None:
        self._store, self._shard, self._spec, self._fields = store, shard, spec, fields
        self._files = files or files_of(store)
        # Opening a dataset does not compare the length of each file, so it is compared here, before the first read.
        # A remote file would cost a request; each of its ranges is compared with its checksum.
        if isinstance(self._files, LocalFiles):
            for entry in shard.files:
                check_file(store, entry)
        # Blocks are checked once: their bytes were compared with the checksum, so they stay the same.
        self._checked: set[int] = set()
        # Paths and schemas are needed for every block and are therefore computed once.
        self._paths = {table: store.name(shard.file(table).path) for table in BLOCK_TABLES}
        self._schemas: dict[BlockTable, pa.Schema] = {
            "timelines": stored_timelines_schema(spec),
            "requests": stored_requests_schema(spec),
        }
        self._decoder = Decoder(spec, self._dictionaries(), fields) if spec.is_compact else None
        # Only for local files: the footer of a remote file would cost a request for bytes that nothing else needs.
        if files is None and isinstance(store, LocalStore):
            for table, schema in self._schemas.items():
                self._check_footer(table, schema)

    def _check_footer(self, table: BlockTable, schema: pa.Schema) -> None:
        """Compare the footer, by which other readers find the blocks, with the snapshot, by which this one does."""
        entry, path = self._shard.file(table), self._paths[table]
        reader = _open_arrow(read_file(self._store, entry, checksum=False), path, schema)
        if reader.num_record_batches != len(self._shard.blocks):
            raise DatasetError(
                f"{path} has {reader.num_record_batches} blocks, but the snapshot lists {len(self._shard.blocks)}. "
                "Build it again."
            )

    def _included(self, table: BlockTable, schema: pa.Schema) -> list[int] | None:
        """The columns of a file to read, None for all: the lists of events that no chosen field needs are left out."""
        if self._decoder is None or self._fields == ALL_FIELDS:
            return None
        names = self._decoder.stored_events
        return [index for index, name in enumerate(schema.names) if not name.startswith("events.") or name in names]

    def _dictionaries(self) -> dict[str, Columns]:
        schema = dictionaries_schema(self._spec)
        if not schema.names:
            return {}
        entry = self._shard.dictionaries
        if entry is None:
            raise DatasetError(
                f"{self._store.name(self._shard.timelines.path)}: the snapshot lists no dictionaries for this shard. "
                "Build it again."
            )
        buffer = self._files.read_file(entry)
        try:
            return read_dictionaries(self._spec, _only_batch(pa.ipc.open_file(buffer), schema))
        except (DatasetError, pa.ArrowException, OSError) as error:
            raise DatasetError(f"{self._store.name(entry.path)} cannot be read: {error}. Build it again.") from None

    @property
    def num_blocks(self) -> int:
        """Number of the shard's blocks."""
        return len(self._shard.blocks)

    def block(self, number: int) -> Block:
        """Read and decode a block, and check it when it is read for the first time.

        Args:
            number: Index of the block in the shard.

        Returns:
            Timelines and requests, with the chosen fields.

        Raises:
            DatasetError: Row counts differ from the snapshot, or an offset is out of range; names file and block.
        """
        timelines, requests = self.stored(number)
        where, is_new = self.where("requests", number), number not in self._checked
        if self._decoder is None:
            if is_new:
                check_history_slices(timelines, requests, where)
        else:
            timelines, events = _decode(self.where("timelines", number), self._decoder.timelines, timelines)
            # Before the targets are decoded: references are relative to history_end, so it must be inside the timeline.
            if is_new:
                check_history_slices(timelines, requests, where)
            requests = _decode(where, self._decoder.requests, requests, timelines, events)
        if is_new:
            check_no_nulls(timelines, "events", self.where("timelines", number))
            check_no_nulls(requests, "targets", where)
            self._checked.add(number)
        return Block(timelines, requests)

    def stored(self, number: int) -> Batches:
        """Read a block as it is in the files, and check only its row counts.

        Args:
            number: Index of the block in the shard.

        Returns:
            Timelines and requests, in their stored columns.
        """
        return self._stored("timelines", number), self._stored("requests", number)

    def where(self, table: BlockTable, number: int) -> str:
        """Return the file and index of a block, for messages."""
        return f"{self._paths[table]}, block {number}"

    def request_columns(self, number: int, names: Sequence[str]) -> pa.RecordBatch:
        """Read some columns of a block's requests; nothing else is decompressed.

        Args:
            number: Index of the block in the shard.
            names: Columns other than `targets`.

        Returns:
            A batch of these columns.
        """
        schema = self._schemas["requests"]
        return self._stored("requests", number, [schema.get_field_index(name) for name in names])

    def _stored(self, table: BlockTable, number: int, included: Sequence[int] | None = None) -> pa.RecordBatch:
        where, schema, block = self.where(table, number), self._schemas[table], self._shard.blocks[number]
        buffer = self._files.read_range(self._shard.file(table).path, block.byte_range(table), where)
        # Blocks are read by the listed offsets and never through the footer, so that a remote reader needs one request.
        included = self._included(table, schema) if included is None else included
        batch = read_record_batch(buffer, number, schema, included, where)
        listed = block.segments if table == "timelines" else block.requests
        if batch.num_rows != listed:
            raise DatasetError(f"{where} has {batch.num_rows} rows, but the snapshot lists {listed}. Build it again.")
        return batch


def _only_batch(reader: pa.RecordBatchFileReader, schema: pa.Schema) -> pa.RecordBatch:
    """The one record batch of a file, with all offsets and strings checked."""
    if not reader.schema.equals(schema):
        raise DatasetError("its columns are not those of the dataset's spec")
    if reader.num_record_batches != 1:
        raise DatasetError(f"it has {reader.num_record_batches} record batches instead of 1")
    batch = reader.get_batch(0)
    batch.validate(full=True)
    return batch


def _decode(where: str, decode: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a decoder, and add file and block to its errors."""
    try:
        return decode(*args, **kwargs)
    except (DatasetError, pa.ArrowException) as error:
        raise DatasetError(f"{where} cannot be read: {error}. Build it again.") from None


def _open_arrow(data: pa.Buffer, path: str, schema: pa.Schema) -> pa.RecordBatchFileReader:
    try:
        reader = pa.ipc.open_file(data)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not the Arrow file that was written: {error}. Build it again.") from None
    if not reader.schema.equals(schema):
        raise DatasetError(f"{path}: its columns are not those of the dataset's spec. Build it again.")
    return reader
