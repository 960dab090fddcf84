"""`longbatch forget`: remove users from a dataset, rewriting only the files that contain their rows.

The new snapshot lists the rewritten files instead of the original ones. Files of older snapshots still contain the
users until `vacuum` removes them. Before the commit, all files that the new snapshot lists are read once more to check
that the users are gone.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.jobs.commit.attempt import attempt
from longbatch.jobs.commit.rewrite import RowFilter, hashed_ids_in_use, rewrite_file
from longbatch.jobs.commit.table_files import read_frame
from longbatch.pipelines.arrays.hashing import bucket_of
from longbatch.schemas.accounting import Counts
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.manifest import FileEntry, ShardEntry
from longbatch.schemas.format.shard_reader import Block, ShardReader
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.snapshot import Snapshot, fingerprint, read_snapshot
from longbatch.schemas.profile import Large, Profile
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.open_store import FileLocation, Location, open_store, read_file
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ArrowArray, Int64Array

from .user_ids import user_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did.

    Attributes:
        path: The dataset's folder.
        snapshot: Number of the new snapshot.
        users: Number of distinct users to forget.
        users_with_requests: Number of those that had a timeline in the dataset.
        rewritten_shards: Number of shards that were rewritten or removed.
        shards: Number of shards before.
        rewritten_files: Number of other files that were rewritten or removed.
        seconds: Duration.
    """

    path: str
    snapshot: int
    users: int
    users_with_requests: int
    rewritten_shards: int
    shards: int
    rewritten_files: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)


def read_users(path: FileLocation) -> list[str]:
    """Read a text file of users.

    Args:
        path: Path or URL of a file with one user a line, as the log names them.

    Returns:
        The users, without empty lines.

    Raises:
        SpecError: The file cannot be read or is empty.
    """
    try:
        users = [line.strip() for line in read_file(path).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the users to forget from {path}: {error}") from None
    if not users:
        raise SpecError(f"{path} contains no users. Write one user a line.")
    return users


def forget(dataset: Location, users: list[str]) -> Forgotten:
    """Commit a snapshot without these users.

    Args:
        dataset: Folder or URL of the dataset.
        users: Users as the log names them. Unknown users are ignored.

    Returns:
        What was rewritten.

    Raises:
        SpecError: A user is not of the dataset's type.
        DatasetError: The folder is not a dataset, a file is damaged, or another build committed first.
        MachineError: The disk is full.
    """
    store, started = open_store(dataset), time.monotonic()
    before = read_snapshot(store)
    ids = user_ids(before.spec, users)
    rows = _UserRows(before.spec, users, ids)
    with attempt(store, reads=before.number) as running:
        with logged_stage(logger, "rewrite shards") as stage:
            changes, removed = _rewrite_shards(store, before, ids, running.name)
            shards = before.shards.replaced(changes)
            stage.rows = removed.requests
        files = _FileRewriter(store, running.name)
        with logged_stage(logger, "rewrite other files"):
            after = replace(
                before,
                number=before.number + 1,
                shards=shards,
                fingerprint=fingerprint(before.spec, shards),
                counts=before.counts + _negative_counts(before.counts, removed),
                profile=_without_names(before.profile, set(map(str, ids.tolist()))),
                quarantine=files.rewrite(before.quarantine, rows.drop_from_quarantine),
                samples=files.rewrite(before.samples, rows.drop_by_id),
                state=files.rewrite(before.state, rows.drop_by_id),
            )
            in_use = hashed_ids_in_use(store, after) if before.vocabulary else pl.Series([], dtype=pl.Int64)
            vocabulary = files.rewrite(
                before.vocabulary, lambda words: words.filter(pl.col("id").is_in(in_use.implode()))
            )
            after = replace(after, vocabulary=vocabulary)
        _check_users_are_gone(store, after, rows)
        running.commit(after)
    return Forgotten(
        path=store.location,
        snapshot=after.number,
        users=len(ids),
        users_with_requests=removed.users,
        rewritten_shards=len(changes),
        shards=len(before.shards),
        rewritten_files=files.rewritten,
        seconds=time.monotonic() - started,
    )


class _UserRows:
    """Drops the rows of users from the tables of a dataset."""

    def __init__(self, spec: BuildSpec, users: list[str], ids: Int64Array) -> None:
        self.ids = pl.Series(ids)
        # Rejected rows contain users as the log names them; if users are integers, also in other notations.
        self.names = pl.Series([*users, *map(str, ids.tolist())]).unique()
        self.columns = {spec.section(role).user_id.column for role in spec.roles}

    def drop_by_id(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Drop by the column `user_id`."""
        return rows.filter(~pl.col("user_id").is_in(self.ids.implode()))

    def drop_words(self, words: pl.DataFrame) -> pl.DataFrame:
        """Drop the users' own strings from a vocabulary."""
        return words.filter(~pl.col("id").is_in(self.ids.implode()))

    def drop_from_quarantine(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Drop original rows by their user column, and malformed lines that contain a user's name as a word."""
        matches = [self._is_user(pl.col(column)) for column in self.columns if column in rows.columns]
        if "_text" in rows.columns:
            words = "|".join(re.escape(name) for name in self.names.to_list())
            matches.append(pl.col("_text").str.contains(rf"(^|\W)({words})(\W|$)").fill_null(False))
        return rows.filter(~pl.any_horizontal(matches)) if matches else rows

    def _is_user(self, column: pl.Expr) -> pl.Expr:
        # A column of floats shows the integer 7 as "7.0".
        string = column.cast(pl.String).str.strip_chars().str.replace(r"\.0+$", "")
        return string.is_in(self.names.implode()).fill_null(False)


class _FileRewriter:
    """Rewrites files of one attempt and counts those that changed."""

    def __init__(self, store: Store, attempt_name: str) -> None:
        self._store, self._attempt = store, attempt_name
        self.rewritten = 0

    def rewrite(self, entries: tuple[FileEntry, ...], keep: RowFilter) -> tuple[FileEntry, ...]:
        """Rewrite those files that lose rows, and return the entries of all files that still have rows."""
        kept = []
        for entry in entries:
            new = rewrite_file(self._store, entry, self._attempt, keep)
            self.rewritten += new is not entry
            kept += [new] if new else []
        return tuple(kept)


def _rewrite_shards(
    store: Store, before: Snapshot, ids: Int64Array, name: str
) -> tuple[dict[int, ShardEntry | None], Counts]:
    """Rewrite the shards that have the users, and count what was removed. Only shards of the users' buckets are read.

    Returns the new entries by the number of the shard, None for a shard that became empty.
    """
    candidates = np.arange(len(before.shards))
    if before.buckets:
        candidates = candidates[np.isin(before.shards.values("bucket"), bucket_of(ids, before.buckets))]
    users: ArrowArray = pa.array(ids)
    changes: dict[int, ShardEntry | None] = {}
    removed = Counts()
    users_with_requests: set[int] = set()
    for number in candidates.tolist():
        shard = before.shards[number]
        present = _users_in(store, shard, before.spec, ids)
        if not present:
            continue
        users_with_requests |= present
        blocks = (_without_users(block, users) for block in _blocks(store, shard, before.spec))
        remaining = ((block.timelines, block.requests) for block in blocks if block)
        rewritten = write_shard(store, shard.bucket, f"{name}-{number:05d}", before.spec, remaining)
        changes[number] = rewritten
        removed += _removed_counts(shard, rewritten)
    return changes, removed + Counts(users=len(users_with_requests))


def _blocks(store: Store, shard: ShardEntry, spec: BuildSpec) -> Iterator[Block]:
    reader = ShardReader(store, shard, spec)
    return (reader.block(number) for number in range(len(shard.blocks)))


def _users_in(store: Store, shard: ShardEntry, spec: BuildSpec, ids: Int64Array) -> set[int]:
    """Those of the users that have a timeline in a shard."""
    present: set[int] = set()
    for block in _blocks(store, shard, spec):
        users = np.asarray(block.timelines["user_id"].to_numpy(zero_copy_only=False))
        present.update(np.intersect1d(users, ids).tolist())
    return present


def _without_users(block: Block, users: ArrowArray) -> Block | None:
    """A block without the users, whose requests point to the new rows of their timelines; None if it becomes empty.

    timelines of users  a b c, without b  -> a c, and new_row = [0, 0, 1]
    requests point to   0 1 2 2           -> rows 0 2 2 remain, which point to 0 1 1
    """
    is_kept = pc.invert(pc.is_in(block.timelines["user_id"], value_set=users))
    timelines = block.timelines.filter(is_kept)
    if not timelines.num_rows:
        return None
    new_row = np.cumsum(is_kept.to_numpy(zero_copy_only=False)) - 1
    requests = block.requests.filter(pc.invert(pc.is_in(block.requests["user_id"], value_set=users)))
    rows = pa.array(new_row[requests["timeline_row"].to_numpy()].astype(np.int32))
    position = requests.schema.get_field_index("timeline_row")
    return Block(timelines, requests.set_column(position, "timeline_row", rows))


def _removed_counts(shard: ShardEntry, rewritten: ShardEntry | None) -> Counts:
    """What a shard lost; `rewritten` is None if it lost everything."""
    return Counts(
        segments=shard.total_segments - (rewritten.total_segments if rewritten else 0),
        requests=shard.total_requests - (rewritten.total_requests if rewritten else 0),
        targets=shard.total_targets - (rewritten.total_targets if rewritten else 0),
        stored_with_overlap=shard.total_events - (rewritten.total_events if rewritten else 0),
        history_events=shard.total_history_events - (rewritten.total_history_events if rewritten else 0),
    )


def _negative_counts(before: Counts, removed: Counts) -> Counts:
    """What to add to the counts of the snapshot before.

    Shards only count stored events, including those that overlapping segments repeat. Distinct events are reduced in
    proportion, and events that were never stored are not reduced.
    """
    share = removed.stored_with_overlap / max(1, before.stored_with_overlap)
    stored = round(before.stored * share)
    total = replace(removed, stored=stored, events=stored)
    return Counts(**{name: -count for name, count in total.as_dict().items()})


def _without_names(profile: Profile, users: set[str]) -> Profile:
    """The profile without the users among the largest users and requests."""

    def others(entries: tuple[Large, ...], user_of: Callable[[str], str] = str) -> tuple[Large, ...]:
        return tuple(entry for entry in entries if user_of(entry.name) not in users)

    skew = profile.skew
    policy_users = {policy: others(entries) for policy, entries in skew.policy_users.items()}
    requests = others(skew.requests, lambda name: name.split("/")[0])  # "user/request"
    return replace(profile, skew=replace(skew, users=others(skew.users), requests=requests, policy_users=policy_users))


def _check_users_are_gone(store: Store, after: Snapshot, rows: _UserRows) -> None:
    """Raise DatasetError if a file that the snapshot lists still contains the users."""
    ids = rows.ids.to_numpy()
    remaining = [shard.timelines.path for shard in after.shards if _users_in(store, shard, after.spec, ids)]
    for entries, drop in (
        (after.quarantine, rows.drop_from_quarantine),
        ((*after.samples, *after.state), rows.drop_by_id),
        (after.vocabulary, rows.drop_words),
    ):
        tables = ((entry, read_frame(store, entry)) for entry in entries)
        remaining += [entry.path for entry, table in tables if drop(table).height < table.height]
    if remaining:
        raise DatasetError(
            f"{store.name(remaining[0])} still contains a forgotten user. Nothing was committed. "
            "Please report this bug."
        )
