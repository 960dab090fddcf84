"""`longbatch forget`: remove users from a dataset everywhere, rewriting only the files that hold something of them.

The new snapshot lists rewritten files in place of theirs. Files of older snapshots still hold the users, until
`vacuum` removes them. Before it commits, a scan of all that the new snapshot lists proves that nothing is left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute

from longbatch.jobs.commit.rewrite import hashed_ids_in_use, keep_words, without_rows
from longbatch.jobs.commit.write_lock import attempt
from longbatch.pipelines.arrays.hashing import bucket_of, hash_string
from longbatch.schemas.accounting import Counts
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.manifest import COUNT_NAMES, FileEntry, ShardEntry
from longbatch.schemas.format.shard_reader import ShardReader
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint, read_snapshot
from longbatch.schemas.profile import Profile
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array


@dataclass(frozen=True)
class Forgotten:
    """What was done: users asked for, those that had a timeline, and files rewritten, of how many."""

    path: str
    snapshot: int
    users: int
    users_with_requests: int
    rewritten_shards: int
    shards: int
    rewritten_files: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(self.__dict__)


def read_users(path: Path) -> list[str]:
    """The users of a text file, one a line, as the log calls them."""
    try:
        users = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the users to forget from {path}: {error}") from None
    if not users:
        raise SpecError(f"{path} names no user; write one a line")
    return users


def user_ids(spec: BuildSpec, users: list[str]) -> Int64Array:
    """Ids, (N,) ascending, of users as the log calls them."""
    if spec.requests.user_id.type == "string":
        return np.unique(hash_string(pl.Series(users, dtype=pl.String)).to_numpy())
    odd = [user for user in users if not re.fullmatch(r"[+-]?\d+", user)]
    if odd:
        raise SpecError(f"user {odd[0]!r} is not a number, but the users of this dataset are integers")
    return np.unique(np.array([int(user) for user in users], dtype=np.int64))


def forget(dataset: str | Path, users: list[str]) -> Forgotten:
    """Commit a snapshot without these users. Raises SpecError, DatasetError, MachineError."""
    root, started = Path(dataset), time.monotonic()
    before = read_snapshot(root)
    ids = user_ids(before.spec, users)
    with attempt(root) as name:
        shards, removed = _without_users(root, before, ids, name)
        files = _Files(root, before.spec, users, ids, name)
        after = replace(
            before,
            number=before.number + 1,
            shards=shards,
            fingerprint=fingerprint(before.spec, shards),
            counts=before.counts + _minus(before.counts, removed),
            profile=_unnamed(before.profile, {str(number) for number in ids.tolist()}),
            quarantine=files.each(before.quarantine, files.quarantine),
            samples=files.each(before.samples, files.by_id),
            state=files.each(before.state, files.by_id),
        )
        in_use = hashed_ids_in_use(root, after) if before.vocabulary else pl.Series([], dtype=pl.Int64)
        after = replace(after, vocabulary=files.each(before.vocabulary, lambda path, rows: keep_words(rows, in_use)))
        _prove(root, after, files)
        commit(root, after, name)
    kept = {row.timelines.path for row in before.shards}
    return Forgotten(
        path=str(root),
        snapshot=after.number,
        users=len(ids),
        users_with_requests=removed.users,
        rewritten_shards=len(before.shards) - sum(row.timelines.path in kept for row in shards),
        shards=len(before.shards),
        rewritten_files=files.rewritten,
        seconds=time.monotonic() - started,
    )


class _Files:
    """Rewrites the files, other than shards, that hold rows to be removed."""

    def __init__(self, root: Path, spec: BuildSpec, users: list[str], ids: Int64Array, attempt_name: str) -> None:
        self.root, self.attempt = root, attempt_name
        self.ids = pl.Series(ids)
        self.texts = pl.Series([*users, *map(str, ids.tolist())]).unique()
        self.user_columns = {spec.section(role).user_id.column for role in spec.roles}
        self.rewritten = 0

    def each(
        self, entries: tuple[FileEntry, ...], left: Callable[[Path, pl.DataFrame], pl.DataFrame]
    ) -> tuple[FileEntry, ...]:
        """The entries with those rows that are left; files that lose nothing stay as they are."""
        found = []
        for entry in entries:
            kept = without_rows(self.root, entry, self.attempt, left)
            self.rewritten += kept is not entry
            found += [kept] if kept else []
        return tuple(found)

    def by_id(self, path: Path, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of other users, of a table with their ids."""
        return rows.filter(~pl.col("user_id").is_in(self.ids.implode()))

    def quarantine(self, path: Path, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows that do not name the users in the column of users, nor, as lines that were no rows, anywhere."""
        named = [self._names(pl.col(column)) for column in self.user_columns if column in rows.columns]
        if "_text" in rows.columns:
            words = "|".join(re.escape(text) for text in self.texts.to_list())
            named.append(pl.col("_text").str.contains(rf"(^|\W)({words})(\W|$)").fill_null(False))
        return rows.filter(~pl.any_horizontal(named)) if named else rows

    def _names(self, column: pl.Expr) -> pl.Expr:
        text = column.cast(pl.String).str.strip_chars().str.replace(r"\.0+$", "")
        return text.is_in(self.texts.implode()).fill_null(False)


def _without_users(root: Path, before: Snapshot, ids: Int64Array, name: str) -> tuple[tuple[ShardEntry, ...], Counts]:
    """The shards without the users, and what was in them; only shards of the users' buckets are looked at."""
    buckets = set(bucket_of(ids, before.buckets).tolist()) if before.buckets else None
    gone = pa.array(ids)
    shards: list[ShardEntry] = []
    removed = Counts()
    users: set[int] = set()
    for number, row in enumerate(before.shards):
        if buckets is not None and row.bucket not in buckets:
            shards.append(row)
            continue
        found = [_users_of(block.timelines, gone) for block in _blocks(root, row, before.spec)]
        if not any(len(hit) for hit in found):
            shards.append(row)
            continue
        users.update(*(hit.to_pylist() for hit in found))
        left = (_left(block, gone) for block in _blocks(root, row, before.spec))
        rewritten = write_shard(root, row.bucket, f"{name}-{number:05d}", before.spec, (b for b in left if b))
        shards += [rewritten] if rewritten else []
        removed += _lost(row, rewritten)
    return tuple(shards), removed + Counts(users=len(users))


def _blocks(root: Path, row: ShardEntry, spec: BuildSpec) -> Iterator[Any]:
    reader = ShardReader(root, row, spec)
    return (reader.block(number) for number in range(len(row.blocks)))


def _users_of(timelines: pa.RecordBatch, gone: pa.Array) -> pa.Array:
    users = timelines["user_id"]
    return users.filter(pa.compute.is_in(users, value_set=gone)).unique()


def _left(block: Any, gone: pa.Array) -> tuple[pa.RecordBatch, pa.RecordBatch] | None:
    """A block without the users, its requests pointing to where their timelines are now; None if none is left."""
    stays = pa.compute.invert(pa.compute.is_in(block.timelines["user_id"], value_set=gone))
    timelines = block.timelines.filter(stays)
    if not timelines.num_rows:
        return None
    place = np.cumsum(stays.to_numpy(zero_copy_only=False)) - 1
    requests = block.requests.filter(pa.compute.invert(pa.compute.is_in(block.requests["user_id"], value_set=gone)))
    rows = pa.array(place[requests["timeline_row"].to_numpy()].astype(np.int32))
    return timelines, requests.set_column(requests.schema.get_field_index("timeline_row"), "timeline_row", rows)


def _lost(row: ShardEntry, rewritten: ShardEntry | None) -> Counts:
    lost = {name: row.total(name) - (rewritten.total(name) if rewritten else 0) for name in COUNT_NAMES}
    return Counts(
        segments=lost["segments"],
        requests=lost["requests"],
        targets=lost["targets"],
        stored_with_overlap=lost["events"],
        history_events=lost["history_events"],
    )


def _minus(before: Counts, removed: Counts) -> Counts:
    """What the counts lose. Of events only those stored are known by user, those that segments repeat in proportion."""
    share = removed.stored_with_overlap / max(1, before.stored_with_overlap)
    stored = round(before.stored * share)
    lost = replace(removed, stored=stored, events=stored)
    return Counts(**{name: -count for name, count in lost.as_dict().items()})


def _unnamed(profile: Profile, users: set[str]) -> Profile:
    """The profile without the users' names among the largest."""
    skew = profile.skew
    return replace(
        profile,
        skew=replace(
            skew,
            users=tuple(large for large in skew.users if large.name not in users),
            requests=tuple(large for large in skew.requests if large.name.split("/")[0] not in users),
            policy_users={
                policy: tuple(large for large in found if large.name not in users)
                for policy, found in skew.policy_users.items()
            },
        ),
    )


def _prove(root: Path, after: Snapshot, files: _Files) -> None:
    """Raise DatasetError if a file that the snapshot lists still holds something of the users."""
    gone = pa.array(files.ids.to_numpy())
    for row in after.shards:
        if any(len(_users_of(block.timelines, gone)) for block in _blocks(root, row, after.spec)):
            raise DatasetError(f"{root / row.timelines.path} still holds a user; please report this as a bug")
    rest = _Files(root, after.spec, files.texts.to_list(), files.ids.to_numpy(), "")
    for entries, left in (
        (after.quarantine, rest.quarantine),
        ((*after.samples, *after.state), rest.by_id),
        (after.vocabulary, lambda path, words: words.filter(~pl.col("id").is_in(files.ids.implode()))),
    ):
        for entry in entries:
            if without_rows(root, entry, None, left) is not entry:
                raise DatasetError(f"{root / entry.path} still holds a user; please report this as a bug")
