"""`longbatch append`: add what became known since a dataset's newest snapshot, without reading the past again.

The result contains exactly the requests, histories and targets of one build of the whole log until then. Shards of
earlier increments stay as they are. The new increment adds shards whose timelines start with the older events that its
requests need. Older snapshots therefore stay readable until `vacuum` removes them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import polars as pl

from longbatch.jobs.commit.attempt import attempt
from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.incremental_state import REQUEST_USERS, Increment, check_appendable
from longbatch.jobs.commit.quality_gates import check_accounting, check_rejects
from longbatch.jobs.commit.table_files import read_frame
from longbatch.jobs.engines.engine import Engine
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.stages import write_samples
from longbatch.jobs.readers.table_pieces import pin_tables
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, fingerprint, read_snapshot
from longbatch.schemas.profile import TableName
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.open_store import Location, open_store
from longbatch.schemas.storage.store import Store
from longbatch.schemas.time import from_microseconds, to_microseconds
from longbatch.schemas.types import ProgressCallback, no_progress

from .build import BuildSummary, run_stages, sorted_entries, summary_of

# Keys of a spec that may differ from one increment to the next, besides the paths of the sources.
MAY_CHANGE = ("name", "max_rejected", "max_rejected_for", "expectations")


def append(
    spec: BuildSpec,
    dataset: Location,
    until: datetime,
    *,
    engine: Engine | None = None,
    progress: ProgressCallback = no_progress,
) -> BuildSummary:
    """Append what became known between the newest snapshot's end and `until`, and commit it.

    The sources may contain rows of other times, which are ignored. Appending the same time twice changes nothing.

    Args:
        spec: The build spec; only paths of sources, thresholds and expectations may have changed.
        dataset: Folder or URL of the dataset; it was built with `until`.
        until: End of the new increment, exclusive.
        engine: Where to run; default: threads of this machine.
        progress: Receives the progress of the stages.

    Returns:
        What the new snapshot contains.

    Raises:
        SpecError: The dataset was built without `until` or with another spec, or already contains later rows.
        DataError: The data failed a check.
        DatasetError: There is no dataset, or another build committed first.
        MachineError: The disk is full.
    """
    store, started = open_store(dataset), time.monotonic()
    before = read_snapshot(store)
    spec = pin_tables(spec)
    increment = _increment(store, spec, before, to_microseconds(until))
    if increment.start == increment.until:
        return summary_of(store, before, {}, started)
    with attempt(store, reads=before.number) as running:
        result = run_stages(engine or LocalEngine(), spec, store, running.name, increment, progress)
        check_accounting(spec, result)
        check_rejects(spec, result, store)
        rows = _all_samples(store, before, result, spec.expectations.sample_rows)
        samples = write_samples(rows, store, running.name)
        snapshot = _appended(spec, before, result, samples, increment)
        running.commit(snapshot)
    return summary_of(store, snapshot, result.row_accounting, started)


def _increment(store: Store, spec: BuildSpec, before: Snapshot, until: int) -> Increment:
    """The time window and the state to start from; raise SpecError if they do not fit the dataset."""
    check_appendable(spec)
    if before.until is None:
        raise SpecError(
            f"{store.location} was built without --until, so nothing can be appended. Build it with --until first."
        )
    if until < before.until:
        end, wanted = (from_microseconds(moment).isoformat() for moment in (before.until, until))
        raise SpecError(
            f"{store.location} already contains the log until {end}, which is after {wanted}. Use a later --until."
        )
    new, old = _fixed_spec_keys(spec), _fixed_spec_keys(before.spec)
    changed = sorted(key for key in new if new[key] != old.get(key))
    if changed:
        raise SpecError(
            f"The spec differs from the one of {store.location} in {', '.join(changed)}. Only paths of sources, "
            "thresholds and expectations may change between increments."
        )
    return Increment(before.until, until, before.buckets, before.state, before.vocabulary)


def _fixed_spec_keys(spec: BuildSpec) -> dict[str, Any]:
    """The keys of a spec that must be the same in all increments: all but MAY_CHANGE and where the sources are."""
    document = spec.model_dump(mode="json")
    sources = {
        name: {**source, "path": None, "version": None, "snapshot": None}
        for name, source in document["sources"].items()
    }
    return {key: value for key, value in document.items() if key not in MAY_CHANGE} | {"sources": sources}


def _appended(
    spec: BuildSpec, before: Snapshot, result: BuildResult, samples: tuple[FileEntry, ...], increment: Increment
) -> Snapshot:
    """The snapshot before with what was built: files and counts of both, and the newest state."""
    shards = before.shards.sorted_with(ShardsTable.from_entries(result.shards))
    # the one state table that grows: appended request ids stay in the files of their increments
    request_users = tuple(entry for entry in before.state if entry.table == REQUEST_USERS)
    # Requests that were pending are in the new counts again, as requests of the dataset or as pending ones.
    no_longer_pending = Counts(
        pending_requests=-before.counts.pending_requests, pending_targets=-before.counts.pending_targets
    )
    return Snapshot(
        number=before.number + 1,
        spec=spec,
        counts=before.counts + result.counts + no_longer_pending,
        row_accounting=_sum(before.row_accounting, result.row_accounting),
        collisions=before.collisions + result.collisions,
        shards=shards,
        vocabulary=sorted_entries((*before.vocabulary, *result.vocabulary)),
        quarantine=sorted_entries((*before.quarantine, *result.quarantine)),
        samples=samples,
        profile=before.profile + result.profile,
        log_end=result.log_end,
        fingerprint=fingerprint(spec, shards),
        buckets=before.buckets,
        until=increment.until,
        state=sorted_entries((*request_users, *result.state)),
        shuffled_bytes=before.shuffled_bytes + result.shuffled_bytes,
    )


def _sum(before: Mapping[str, RowAccounting], new: Mapping[str, RowAccounting]) -> dict[str, RowAccounting]:
    return dict((BuildResult(row_accounting=before) + BuildResult(row_accounting=new)).row_accounting)


def _all_samples(store: Store, before: Snapshot, result: BuildResult, rows: int) -> dict[TableName, pl.DataFrame]:
    """The samples before together with the new ones, sampled again down to `rows` rows a table."""
    tables: dict[TableName, pl.DataFrame] = {}
    for entry in before.samples:
        tables[cast(TableName, entry.table)] = read_frame(store, entry)
    for table, sample in result.samples.items():
        tables[table] = pl.concat([tables[table], sample], how="diagonal") if table in tables else sample
    return {table: _shortened(sample, rows, before.number) for table, sample in tables.items()}


def _shortened(sample: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """At most `rows` rows of a sample, those of each user by time, as in the sample of one build."""
    if sample.height > rows:
        sample = sample.with_row_index("_row").sample(rows, seed=seed).sort("_row").drop("_row")
    if "request_time" in sample.columns:
        # A request that was pending is new in this increment, but older than requests of the increments before.
        sample = sample.sort("user_id", "request_time", maintain_order=True)
    return sample
