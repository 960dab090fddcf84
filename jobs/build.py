"""`longbatch build`: a raw log becomes a dataset, which is committed at the very end.

The way of a row, on every engine:

    read -> canonicalize -> split by bucket -> kernel -> pack -> write -> commit

`run_stages` is that sentence as code. `longbatch.jobs.engines.stages` has the tasks of each stage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from longbatch.jobs.commit.attempt import attempt, attempt_files, is_dataset_entry
from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.incremental_state import Increment, check_appendable
from longbatch.jobs.commit.quality_gates import check_result
from longbatch.jobs.engines.engine import Engine
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.stages import BuildFacts, write_samples
from longbatch.jobs.readers.table_pieces import pin_tables
from longbatch.pipelines.canonicalize import gather_log_facts
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, fingerprint, snapshot_numbers, snapshot_path
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.open_store import Location, is_file, open_store
from longbatch.schemas.storage.store import Store
from longbatch.schemas.time import to_microseconds
from longbatch.schemas.types import ProgressCallback, no_progress
from longbatch.validation.rules import check_threshold_names

# Objects to look at before a build, so that a bucket of a billion of them is refused in a moment.
ENTRIES_TO_CHECK = 10_000


@dataclass(frozen=True)
class BuildSummary:
    """What a build did.

    Attributes:
        path: Folder or URL of the dataset.
        snapshot: Number of the committed snapshot.
        fingerprint: Identifies the spec and the bytes of all shards.
        counts: What the dataset contains.
        row_accounting: The outcome of every row, by source.
        run_row_accounting: The outcome of every row that this run read, by source: of an append only the new rows.
        collisions: Number of strings that share a hashed id with another string.
        shards: Number of shards.
        bytes: Size of all files that the snapshot lists.
        seconds: Duration.
    """

    path: str
    snapshot: int
    fingerprint: str
    counts: Counts
    row_accounting: Mapping[str, RowAccounting]
    run_row_accounting: Mapping[str, RowAccounting]
    collisions: int
    shards: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        plain = dict(self.__dict__)
        plain["counts"] = self.counts.as_dict()
        for name in ("row_accounting", "run_row_accounting"):
            plain[name] = {source: accounting.as_dict() for source, accounting in plain[name].items()}
        return plain


def build(
    spec: BuildSpec,
    out: Location,
    *,
    engine: Engine | None = None,
    overwrite: bool = False,
    until: datetime | None = None,
    progress: ProgressCallback = no_progress,
) -> BuildSummary:
    """Build the dataset that a spec describes and commit it. After an error nothing is visible and no file is left.

    Args:
        spec: The build spec.
        out: Folder or URL of the dataset; see `open_store`.
        engine: Where to run; default: threads of this machine.
        overwrite: Replace an existing dataset, after success only.
        until: Build what was known before this time, so that later increments can be appended (`longbatch append`).
        progress: Receives the progress of the stages.

    Returns:
        What was committed.

    Raises:
        SpecError: The spec does not fit the log, or does not allow `until`.
        SourceError: A file or a column is missing.
        DataError: The data failed a check.
        DatasetError: `out` exists, or another build committed first.
        MachineError: The disk is full.

    Example:
        >>> from longbatch.schemas.spec.build_spec import load_spec
        >>> summary = build(load_spec("spec.toml"), "dataset")  # doctest: +SKIP
        >>> summary.counts.requests  # doctest: +SKIP
        118364
    """
    check_threshold_names(spec)
    _check_suites(spec)
    if until:
        check_appendable(spec)
    spec = pin_tables(spec)
    store, started = open_store(out), time.monotonic()
    existing = _check_output(store, overwrite)
    increment = Increment(None, to_microseconds(until)) if until else None
    with attempt(store) as running:
        result = run_stages(engine or LocalEngine(), spec, store, running.name, increment, progress)
        check_result(spec, result, store)
        samples = write_samples(result.samples, store, running.name)
        snapshot = _snapshot(spec, result, samples, (existing[-1] if existing else 0) + 1, increment)
        replaced = _unlisted_files(store, snapshot) if existing else []
        running.commit(snapshot)
    if existing:
        # The reports describe the snapshot that this one replaced.
        store.delete([*replaced, *(file.path for file in store.list_files("reports"))])
    return summary_of(store, snapshot, result.row_accounting, started)


def run_stages(
    engine: Engine,
    spec: BuildSpec,
    store: Store,
    attempt: str,
    increment: Increment | None,
    progress: ProgressCallback,
) -> BuildResult:
    """Run the stages of a build on an engine: everything but the commit.

    Args:
        engine: Where to run.
        spec: The build spec.
        store: The dataset.
        attempt: Name of the attempt, which every file name contains.
        increment: Time window and state of an incremental build.
        progress: Receives the progress of the stages.

    Returns:
        All files that were written, and what was counted.
    """
    with engine.start(spec, store, attempt, increment, progress) as stages:
        # Per chunk, in parallel: read -> canonicalize -> split by bucket.
        result = stages.read_canonicalize_split()
        # Two facts need the rows of all users: request ids that users share, and where the log of actions ends.
        conflicts, request_users = stages.find_conflicts()
        result += request_users
        log_end = gather_log_facts(spec, [result.latest_action], None, stages.context.window).log_end
        if conflicts is not None:
            result += stages.quarantine_conflicts(conflicts)
        # Per user bucket, in parallel: kernel -> pack -> write.
        result += stages.build_shards(BuildFacts(log_end, conflicts))
        if conflicts is not None:
            conflicts.delete(store)
        return result + BuildResult(log_end=log_end, buckets=stages.context.buckets)


def summary_of(
    store: Store, snapshot: Snapshot, run_row_accounting: Mapping[str, RowAccounting], started: float
) -> BuildSummary:
    """Summarize a snapshot.

    Args:
        store: The dataset.
        snapshot: The snapshot.
        run_row_accounting: The outcome of every row that this run read, by source.
        started: Start of the build on the monotonic clock.

    Returns:
        The summary, whose duration ends now.
    """
    return BuildSummary(
        path=store.location,
        snapshot=snapshot.number,
        fingerprint=snapshot.fingerprint,
        counts=snapshot.counts,
        row_accounting=snapshot.row_accounting,
        run_row_accounting=run_row_accounting,
        collisions=snapshot.collisions,
        shards=len(snapshot.shards),
        bytes=snapshot.file_bytes,
        seconds=time.monotonic() - started,
    )


def _check_suites(spec: BuildSpec) -> None:
    """Raise SpecError for a missing suite of expectations now rather than after the build."""
    for table, path in spec.expectations.suites.items():
        if path and not is_file(path):
            raise SpecError(f"file not found: {path!r} (expectations.{table}). Fix the path or remove the key.")


def _check_output(store: Store, overwrite: bool) -> list[int]:
    """Numbers of the existing snapshots; raise DatasetError if the place must not be written."""
    existing = snapshot_numbers(store)
    if existing and not overwrite:
        raise DatasetError(
            f"{store.location} already contains a dataset. Pass --overwrite to replace it after a successful build."
        )
    if not existing and not all(map(is_dataset_entry, _entries(store))):
        raise DatasetError(
            f"{store.location} exists and is not a dataset. Choose another output folder, or remove it yourself."
        )
    return existing


def _entries(store: Store) -> Iterator[str]:
    """Names of what is directly in a place; of an object store, of some of it."""
    if isinstance(store, LocalStore):
        if store.root.exists():
            yield from (path.name for path in (store.root.iterdir() if store.root.is_dir() else [store.root]))
    else:
        yield from (file.path.partition("/")[0] for file in islice(store.list_files(), ENTRIES_TO_CHECK))


def _snapshot(
    spec: BuildSpec, result: BuildResult, samples: tuple[FileEntry, ...], number: int, increment: Increment | None
) -> Snapshot:
    shards = ShardsTable.from_entries(sorted(result.shards, key=lambda shard: shard.sort_key))
    return Snapshot(
        number=number,
        spec=spec,
        counts=result.counts,
        row_accounting=dict(result.row_accounting),
        collisions=result.collisions,
        shards=shards,
        vocabulary=sorted_entries(result.vocabulary),
        quarantine=sorted_entries(result.quarantine),
        samples=samples,
        profile=result.profile,
        log_end=result.log_end,
        fingerprint=fingerprint(spec, shards),
        buckets=result.buckets,
        until=increment.until if increment else None,
        state=sorted_entries(result.state),
        shuffled_bytes=result.shuffled_bytes,
    )


def sorted_entries(entries: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    """Sort file entries by path, so that a snapshot does not depend on the order in which tasks finish.

    Args:
        entries: File entries.
    """
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _unlisted_files(store: Store, snapshot: Snapshot) -> list[str]:
    """Files to remove once `snapshot` is committed: older snapshots, and data that it does not list.

    They are looked up before the commit, so that the files of a build that starts after it are never among them. A
    build that was writing already can no longer commit, because this one takes its snapshot number.
    """
    listed = snapshot.paths
    older = [snapshot_path(number) for number in snapshot_numbers(store)]
    return older + [path for path in attempt_files(store) if path not in listed]
