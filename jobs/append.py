"""`longbatch append`: add to a dataset what became known since its newest snapshot, without reading the past again.

The result holds exactly the requests, histories and targets that one build of the whole log until then would.
Shards of days before are listed as they are; the new day adds shards, whose timelines begin with the newest events
that its requests reach back to. So older snapshots stay readable until `vacuum` removes them.

spark-submit jobs/append.py SPEC DATASET --until TIME
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from longbatch.jobs.commit.incremental_state import OWNERS, Increment, check_appendable
from longbatch.jobs.commit.quality_gates import check_accounting, check_rejects
from longbatch.jobs.commit.write_lock import attempt
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.stages import Built, make_samples
from longbatch.pipelines.parse import parse_moment
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint, read_snapshot
from longbatch.schemas.profile import TableName
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.time import to_microseconds
from longbatch.schemas.types import ProgressCallback, no_progress

from .build import BuildSummary, Engine, submitted, summary_of

OWN_TO_A_RUN = ("name", "sources", "max_rejected", "max_rejected_for", "expectations")


def append(
    spec: BuildSpec,
    dataset: str | Path,
    until: datetime,
    *,
    engine: Engine | None = None,
    progress: ProgressCallback = no_progress,
) -> BuildSummary:
    """Append what the spec's sources hold of the time from the newest snapshot's end until `until`, and commit it.

    The sources may hold more: rows of other times are not looked at. Doing it twice changes nothing.
    Raises SpecError if the dataset cannot grow or means something else, DataError, DatasetError, MachineError.
    """
    root, started = Path(dataset), time.monotonic()
    before = read_snapshot(root)
    increment = _increment(root, spec, before, to_microseconds(until))
    if increment.start == increment.until:
        return summary_of(root, before, started)
    with attempt(root) as name:
        built = (engine or LocalEngine()).build(spec, root, name, progress, increment)
        check_accounting(spec, built)
        check_rejects(spec, built, root)
        samples = make_samples(_thinned(root, before, built, spec.expectations.sample_rows), root, name)
        snapshot = _grown(spec, before, built, samples, increment)
        commit(root, snapshot, name)
    return summary_of(root, snapshot, started)


def _increment(root: Path, spec: BuildSpec, before: Snapshot, until: int) -> Increment:
    check_appendable(spec)
    if before.until is None:
        raise SpecError(f"{root} was built without --until, so nothing can be appended; build it with --until first")
    if until < before.until:
        raise SpecError(f"{root} holds the log until {_text(before.until)} already, which is after {_text(until)}")
    mine, theirs = _meaning(spec), _meaning(before.spec)
    changed = sorted(key for key in mine if mine[key] != theirs.get(key))
    if changed:
        raise SpecError(
            f"the spec differs from that of {root} in {', '.join(changed)}; only paths of sources, thresholds and "
            "expectations may change from day to day"
        )
    return Increment(before.until, until, before.buckets, before.state, before.vocabulary)


def _text(moment_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment_us)).isoformat()


def _meaning(spec: BuildSpec) -> dict[str, Any]:
    """Everything of a spec that decides what the rows mean: all but where they lie and what is tolerated."""
    document = spec.model_dump(mode="json")
    sources = {name: {**source, "path": None} for name, source in document["sources"].items()}
    return {key: value for key, value in document.items() if key not in OWN_TO_A_RUN} | {"sources": sources}


def _grown(
    spec: BuildSpec, before: Snapshot, built: Built, samples: list[dict[str, Any]], increment: Increment
) -> Snapshot:
    """The snapshot before with what was built: files and counts of both, and of the state what is newest."""
    shards = sorted((*before.shards, *built.shards), key=lambda row: (row["bucket"], row["timelines"]["path"]))
    owners = [entry for entry in before.state if entry["kind"] == OWNERS]
    held = -before.counts.pending_requests, -before.counts.pending_targets  # those still held are counted anew
    counts = before.counts + built.counts
    return Snapshot(
        number=before.number + 1,
        spec=spec,
        counts=_with_pending(counts, *held),
        row_accounting=_sum(before.row_accounting, built.row_accounting),
        collisions=before.collisions + built.collisions,
        shards=tuple(shards),
        vocabulary=_sorted([*before.vocabulary, *built.vocabulary]),
        quarantine=_sorted([*before.quarantine, *built.quarantine]),
        samples=tuple(samples),
        profile=before.profile + built.profile,
        log_end=built.log_end,
        fingerprint=fingerprint(spec, tuple(shards)),
        buckets=before.buckets,
        until=increment.until,
        state=_sorted([*owners, *built.state]),
        shuffled_bytes=before.shuffled_bytes + built.shuffled_bytes,
    )


def _with_pending(counts: Counts, requests: int, targets: int) -> Counts:
    return counts + Counts(pending_requests=requests, pending_targets=targets)


def _sorted(entries: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple(sorted(entries, key=lambda entry: str(entry["path"])))


def _sum(before: Mapping[str, RowAccounting], now: Mapping[str, RowAccounting]) -> dict[str, RowAccounting]:
    none = RowAccounting()
    return {source: before.get(source, none) + now.get(source, none) for source in {**before, **now}}


def _thinned(root: Path, before: Snapshot, built: Built, rows: int) -> dict[TableName, pl.DataFrame]:
    """The samples before and the new ones, drawn from again where they are together more than `rows`."""
    tables: dict[TableName, pl.DataFrame] = {}
    for entry in before.samples:
        tables[entry["table"]] = pl.read_parquet(root / entry["path"])
    for table, sample in built.samples.items():
        tables[table] = pl.concat([tables[table], sample], how="diagonal") if table in tables else sample
    return {
        table: sample.sample(rows, seed=before.number) if sample.height > rows else sample
        for table, sample in tables.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `spark-submit jobs/append.py`: the spark engine on the session that spark-submit set up."""
    from longbatch.jobs.engines.spark import SparkEngine

    parser = argparse.ArgumentParser(prog="append.py", description="Append to a longbatch dataset on Spark.")
    parser.add_argument("spec", help="the build spec (TOML)")
    parser.add_argument("dataset", help="the dataset's folder, reachable by all workers")
    parser.add_argument("--until", required=True, help="append what was known before this time (ISO)")
    given = parser.parse_args(arguments)
    return submitted(
        lambda: append(load_spec(given.spec), given.dataset, parse_moment(given.until), engine=SparkEngine())
    )


if __name__ == "__main__":
    sys.exit(main())
