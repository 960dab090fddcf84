"""The incremental state of a dataset on disk: what later appends need of the log so far.

State files are Arrow IPC files by table and bucket in `state/`, listed in the snapshot as file entries.

| table | bucket of | rows | reason | trimmed by |
|---|---|---|---|---|
| `events` | users | newest L events of each user, older ones of pending requests | later histories | `events_to_keep` |
| `targets` | users | targets of pending requests | their labels come later | `advance_state` |
| `actions` | users | actions not older than the longest label window | later labels | `advance_state` |
| `users` | users | number of segments of each user | segment numbers continue | never: one row per user |
| `request_users` | request ids | all request ids with their users | appended requests cannot change | never |

Each append replaces the files of all tables but REQUEST_USERS, to which it only adds a file, so that old request ids
are not written again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from longbatch.pipelines.incremental import IncrementalState, IncrementWindow
from longbatch.schemas.errors import DataError, SpecError
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.store import Store

from .table_files import read_frame, write_frame

REQUEST_USERS = "request_users"


@dataclass(frozen=True)
class Increment:
    """Time window of an incremental build, and the files of the previous state that it continues from.

    The first build of an incremental dataset has only the end of the window.

    Attributes:
        start: Start of the window in microseconds, inclusive; None for the first build.
        until: End of the window in microseconds, exclusive.
        buckets: Number of user buckets; None for the first build.
        state: Entries of the state files of the snapshot before; none for the first build.
        vocabulary: Entries of the vocabulary files of the snapshot before.
    """

    start: int | None
    until: int
    buckets: int | None = None
    state: tuple[FileEntry, ...] = ()
    vocabulary: tuple[FileEntry, ...] = ()

    @property
    def window(self) -> IncrementWindow:
        """The time window."""
        return IncrementWindow(self.start, self.until)

    def without_files(self) -> Increment:
        """Copy the increment without its lists of files, which grow with every append: for tasks of single buckets."""
        return replace(self, state=(), vocabulary=())

    def files_by_bucket(self) -> dict[int, EarlierFiles]:
        """Group the files by bucket, in one pass; a bucket without files is absent."""
        state, vocabulary = _by_bucket(self.state), _by_bucket(self.vocabulary)
        return {
            bucket: EarlierFiles(tuple(state.get(bucket, ())), tuple(vocabulary.get(bucket, ())))
            for bucket in sorted({*state, *vocabulary})
        }


@dataclass(frozen=True)
class EarlierFiles:
    """Files of earlier increments that one bucket continues from.

    Attributes:
        state: Entries of its state files.
        vocabulary: Entries of its vocabulary files.
    """

    state: tuple[FileEntry, ...] = ()
    vocabulary: tuple[FileEntry, ...] = ()

    def of_table(self, table: str) -> list[FileEntry]:
        """Select the state files of one table.

        Args:
            table: Name of the table.
        """
        return [entry for entry in self.state if entry.table == table]

    def to_json(self) -> str:
        """Convert the entries to JSON, without the spaces that no reader needs."""
        tables = {name: [entry.as_dict() for entry in entries] for name, entries in vars(self).items()}
        return json.dumps(tables, separators=(",", ":"))

    @classmethod
    def from_json(cls, document: str | bytes) -> EarlierFiles:
        """Read the entries back.

        Args:
            document: What `to_json` returned.
        """
        tables = json.loads(document)
        return cls(**{name: tuple(FileEntry.from_dict(e, name) for e in entries) for name, entries in tables.items()})


def _by_bucket(entries: Iterable[FileEntry]) -> dict[int, list[FileEntry]]:
    grouped: dict[int, list[FileEntry]] = defaultdict(list)
    for entry in entries:
        if entry.bucket is not None:
            grouped[entry.bucket].append(entry)
    return grouped


def check_appendable(spec: BuildSpec) -> None:
    """Check that increments of this spec give exactly what one build of the whole log gives.

    Args:
        spec: The build spec.

    Raises:
        SpecError: An increment would have to read the past again.
    """
    reason = None
    if spec.users.max_events is not None or spec.users.min_events:
        reason = "[users] counts all events of a user, including those of later increments"
    elif spec.requests.session_gap_us:
        reason = "a session can continue in the next increment; log a request_id, or remove session_gap"
    elif spec.history.request_id and not (spec.one_log and spec.history.request_id == spec.requests.request_id):
        reason = "history.request_id of another log can name a request long before the request arrives; remove it"
    elif any(source.synthetic_time for source in spec.sources.values()):
        reason = "synthetic_time depends on the position of each file, which changes when files are added"
    if reason:
        raise SpecError(f"This spec does not allow incremental builds: {reason}. Build without --until.")


def read_state(store: Store, earlier: EarlierFiles) -> IncrementalState:
    """Read the state of a user bucket.

    Args:
        store: The dataset.
        earlier: Files of the bucket.

    Returns:
        The tables that have rows.

    Raises:
        DatasetError: A file is missing or altered.
    """
    tables = {entry.table for entry in earlier.state if entry.table} - {REQUEST_USERS}
    frames = {table: read_files(store, earlier.of_table(table)) for table in tables}
    return IncrementalState({table: frame for table, frame in frames.items() if frame is not None})


def read_files(store: Store, entries: Sequence[FileEntry]) -> pl.DataFrame | None:
    """Read files of the state.

    Args:
        store: The dataset.
        entries: Files of one table.

    Returns:
        All their rows, or None if there are no files.

    Raises:
        DatasetError: A file is missing or altered.
    """
    frames = [read_frame(store, entry, checksum=True) for entry in entries]
    return pl.concat(frames, rechunk=True) if frames else None


def write_state(store: Store, bucket: int, attempt: str, state: IncrementalState) -> tuple[FileEntry, ...]:
    """Write the state of a user bucket; tables without rows get no file.

    Args:
        store: The dataset.
        bucket: Number of the bucket.
        attempt: Name of the attempt.
        state: All tables of the bucket.

    Returns:
        Entries of the files.

    Raises:
        MachineError: The disk is full.
    """
    tables = {table: frame for table, frame in state.tables.items() if frame.height}
    return tuple(_write_table(store, table, bucket, attempt, frame) for table, frame in tables.items())


def _write_table(store: Store, table: str, bucket: int, attempt: str, frame: pl.DataFrame) -> FileEntry:
    path = f"state/{table}-{bucket:05d}-{attempt}.arrow"
    return write_frame(store, path, frame, table=table, bucket=bucket)


def append_request_users(
    store: Store, earlier: EarlierFiles, bucket: int, attempt: str, pairs: pl.DataFrame
) -> tuple[FileEntry, ...]:
    """Add the distinct request ids of a bucket, with their users, to those of earlier increments.

    Args:
        store: The dataset.
        earlier: Files of the bucket.
        bucket: Number of the bucket of request ids.
        attempt: Name of the attempt.
        pairs: New pairs (request_id, user_id), with repetitions.

    Returns:
        The entry of the new file, if there are pairs.

    Raises:
        DataError: A request id was already appended, so its request is in the dataset and cannot change.
        MachineError: The disk is full.
    """
    pairs = pairs.unique().sort("request_id", "user_id")
    known = read_files(store, earlier.of_table(REQUEST_USERS))
    if known is not None:
        repeated = pairs.join(known, on="request_id", how="inner").sort("request_id")
        if repeated.height:
            request, user, known_user = repeated.row(0)
            raise DataError(
                f"request {request} of user {user} was already appended in an earlier increment, for user "
                f"{known_user}, as were {repeated.height - 1:,} others. An appended request cannot change: build the "
                "whole log without append, or give later requests other ids. Nothing was committed."
            )
    return (_write_table(store, REQUEST_USERS, bucket, attempt, pairs),) if pairs.height else ()
