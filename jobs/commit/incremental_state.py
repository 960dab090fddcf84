"""The state of a dataset that grows day by day, on disk: Arrow IPC files by user bucket, listed in the snapshot.

Entries are file entries with `kind` and `bucket`. Of the kinds in REPLACED each append writes its buckets anew; of
OWNERS (the request ids that are in the dataset, by bucket of the id) it adds a file, so the past is not written again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from longbatch.pipelines.incremental import IncrementalState, IncrementWindow
from longbatch.schemas.errors import DataError, MachineError, SpecError
from longbatch.schemas.format.shard import check_file, disk_message, file_entry
from longbatch.schemas.spec.build_spec import BuildSpec

OWNERS = "owners"
Entry = dict[str, Any]


@dataclass(frozen=True)
class Increment:
    """What makes a build one of a series: its window, and the buckets, state and vocabulary of the snapshot before.

    All plain values, so that it travels to tasks. buckets is None for the first build.
    """

    start: int | None
    until: int
    buckets: int | None = None
    state: tuple[Entry, ...] = ()
    vocabulary: tuple[Entry, ...] = ()

    @classmethod
    def of_json(cls, text: str | None) -> Increment | None:
        """Read what `json.dumps(asdict(increment))` wrote; None of None."""
        if text is None:
            return None
        read = json.loads(text)
        return cls(**{**read, "state": tuple(read["state"]), "vocabulary": tuple(read["vocabulary"])})

    @property
    def window(self) -> IncrementWindow:
        """The window of time that is appended."""
        return IncrementWindow(self.start, self.until)

    def entries(self, kind: str, bucket: int) -> list[Entry]:
        """The files of a kind of a bucket."""
        return [entry for entry in self.state if (entry["kind"], entry["bucket"]) == (kind, bucket)]


def check_appendable(spec: BuildSpec) -> None:
    """Raise SpecError for what cannot be had day by day exactly as in one build, but by reading the past again."""
    why = None
    if spec.users.max_events is not None or spec.users.min_events:
        why = "[users] counts all events of a user, also those of days to come"
    elif spec.requests.session_gap_us:
        why = "a session may go on on the next day; log a request_id, or leave session_gap out"
    elif spec.history.request_id and not (spec.one_log and spec.history.request_id == spec.requests.request_id):
        why = "history.request_id of another log may name a request long before it comes; leave it out"
    elif any(source.synthetic_time for source in spec.sources.values()):
        why = "synthetic_time gives every file times of its own place, which changes when files are added"
    if why:
        raise SpecError(f"this spec cannot be built day by day: {why}. Build without --until")


def read_carried(root: Path, increment: Increment, bucket: int) -> IncrementalState:
    """Read the state of a user bucket."""
    kinds = {entry["kind"] for entry in increment.state} - {OWNERS}
    found = {kind: read_files(root, increment.entries(kind, bucket)) for kind in kinds}
    return IncrementalState({kind: frame for kind, frame in found.items() if frame is not None})


def read_files(root: Path, entries: Sequence[Entry]) -> pl.DataFrame | None:
    """All rows of some files of the state, or None if there are no files."""
    frames = [pl.read_ipc(check_file(root, entry, checksum=True)) for entry in entries]
    return pl.concat(frames, rechunk=True) if frames else None


def write_carried(root: Path, bucket: int, attempt: str, carried: IncrementalState) -> list[Entry]:
    """Write the state of a user bucket; tables without rows have no file."""
    return [write_table(root, kind, bucket, attempt, frame) for kind, frame in carried.tables.items() if frame.height]


def write_table(root: Path, kind: str, bucket: int, attempt: str, frame: pl.DataFrame) -> Entry:
    """Write one table of the state, synced to disk; return its entry."""
    path = root / "state" / f"{kind}-{bucket:05d}-{attempt}.arrow"
    try:
        frame.write_ipc(path, compression="zstd", compat_level=pl.CompatLevel.oldest())
    except OSError as error:
        raise MachineError(disk_message(error, path)) from None
    return {"kind": kind, "bucket": bucket, **file_entry(root, path, frame.height)}


def new_owners(root: Path, increment: Increment, bucket: int, attempt: str, pairs: pl.DataFrame) -> list[Entry]:
    """Add the distinct (request_id, user_id) of a bucket of ids to the known ones.

    Raises DataError where an id is known already: its request is in the dataset, and cannot change any more.
    """
    pairs = pairs.unique().sort("request_id", "user_id")
    known = read_files(root, increment.entries(OWNERS, bucket))
    if known is not None:
        again = pairs.join(known, on="request_id", how="inner").sort("request_id")
        if again.height:
            request, user, before = again.row(0)
            raise DataError(
                f"request {request} of user {user} was in an earlier part of the log already (of user {before}), and "
                f"{again.height - 1:,} more: a request that is appended cannot change. Build anew without append, or "
                "give requests ids and times of their own; nothing was committed"
            )
    return [write_table(root, OWNERS, bucket, attempt, pairs)] if pairs.height else []
