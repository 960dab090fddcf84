"""`longbatch build`, and the script for `spark-submit`: raw log -> dataset, committed at the very end.

spark-submit jobs/build.py SPEC OUT [--overwrite] [--until TIME]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from longbatch.jobs.commit.incremental_state import Increment, check_appendable
from longbatch.jobs.commit.quality_gates import check_built
from longbatch.jobs.commit.write_lock import attempt, is_ours
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.stages import FOLDERS, Built, make_samples
from longbatch.pipelines.parse import parse_moment
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import DatasetError, LongbatchError, SpecError
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint, snapshot_numbers
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.time import to_microseconds
from longbatch.schemas.types import ProgressCallback, no_progress
from longbatch.validation.rules import check_threshold_names


class Engine(Protocol):
    """Anything that can turn a spec into the files of a dataset."""

    def build(
        self, spec: BuildSpec, root: Path, attempt: str, progress: ProgressCallback, increment: Increment | None = None
    ) -> Built:
        """Write all files, of an increment its own, under `root`, named with `attempt`, and return what to commit."""


@dataclass(frozen=True)
class BuildSummary:
    """What a build did. bytes: all files the snapshot lists; quarantined rows are in the row_accounting."""

    path: str
    snapshot: int
    fingerprint: str
    counts: Counts
    row_accounting: Mapping[str, RowAccounting]
    collisions: int
    shards: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = dict(self.__dict__)
        plain["counts"] = self.counts.as_dict()
        plain["row_accounting"] = {source: accounting.as_dict() for source, accounting in self.row_accounting.items()}
        return plain


def build(
    spec: BuildSpec,
    out: str | Path,
    *,
    engine: Engine | None = None,
    overwrite: bool = False,
    until: datetime | None = None,
    progress: ProgressCallback = no_progress,
) -> BuildSummary:
    """Build the dataset a spec describes into `out` and commit it; on any error nothing is visible and nothing left.

    `overwrite` replaces an existing dataset, after success only. With `until` it holds what was known before that time,
    and later days can be appended (`longbatch.jobs.append`). Raises SpecError, SourceError, DataError
    (the data failed a check), DatasetError (`out` exists), MachineError (disk full).
    """
    check_threshold_names(spec)
    _check_suites(spec)
    if until:
        check_appendable(spec)
    root, started = Path(out), time.monotonic()
    existing = _check_output(root, overwrite)
    increment = Increment(None, to_microseconds(until)) if until else None
    with attempt(root) as name:
        built = (engine or LocalEngine()).build(spec, root, name, progress, increment)
        check_built(spec, built, root)
        samples = make_samples(built.samples, root, name)
        snapshot = _snapshot(spec, built, samples, (existing[-1] if existing else 0) + 1, increment)
        replaced = _unlisted(root, snapshot) if existing else []
        commit(root, snapshot, name)
    for path in replaced:
        path.unlink(missing_ok=True)
    shutil.rmtree(root / "reports", ignore_errors=True)  # of the snapshot that this one replaced
    return summary_of(root, snapshot, started)


def summary_of(root: Path, snapshot: Snapshot, started: float) -> BuildSummary:
    """Say what a snapshot holds, and how long it took since `started` (of the monotonic clock)."""
    return BuildSummary(
        path=str(root),
        snapshot=snapshot.number,
        fingerprint=snapshot.fingerprint,
        counts=snapshot.counts,
        row_accounting=snapshot.row_accounting,
        collisions=snapshot.collisions,
        shards=len(snapshot.shards),
        bytes=sum(entry["bytes"] for entry in snapshot.files),
        seconds=time.monotonic() - started,
    )


def _check_suites(spec: BuildSpec) -> None:
    """Raise SpecError for a suite that is not there now rather than after the build."""
    for table, path in spec.expectations.suites.items():
        if path and not Path(path).is_file():
            raise SpecError(f"expectations.{table} names {path}, which is no file; mend the path or take the key away")


def _check_output(root: Path, overwrite: bool) -> list[int]:
    existing = snapshot_numbers(root)
    if existing and not overwrite:
        raise DatasetError(f"{root} already holds a dataset; pass --overwrite to replace it after a successful build")
    if not existing and root.exists() and (not root.is_dir() or not all(map(is_ours, root.iterdir()))):
        raise DatasetError(f"{root} exists and is not a dataset; choose another output, or remove it yourself")
    return existing


def _snapshot(
    spec: BuildSpec, built: Built, samples: list[dict[str, Any]], number: int, increment: Increment | None
) -> Snapshot:
    shards = tuple(sorted(built.shards, key=lambda row: (row["bucket"], row["timelines"]["path"])))
    return Snapshot(
        number=number,
        spec=spec,
        counts=built.counts,
        row_accounting=dict(built.row_accounting),
        collisions=built.collisions,
        shards=shards,
        vocabulary=tuple(sorted(built.vocabulary, key=lambda entry: str(entry["path"]))),
        quarantine=tuple(sorted(built.quarantine, key=lambda entry: str(entry["path"]))),
        samples=tuple(samples),
        profile=built.profile,
        log_end=built.log_end,
        fingerprint=fingerprint(spec, shards),
        buckets=built.buckets,
        until=increment.until if increment else None,
        state=tuple(built.state),
        shuffled_bytes=built.shuffled_bytes,
    )


def _unlisted(root: Path, snapshot: Snapshot) -> list[Path]:
    """Return the files to remove once `snapshot` is committed: older snapshots, and data that it does not list.

    Asked before the commit: a build that starts after it must find its own files untouched (those that were
    writing already cannot commit any more, for this one takes their number).
    """
    listed = {entry["path"] for entry in snapshot.files}
    paths = [path for folder in FOLDERS for path in (root / folder).iterdir()]
    return [path for path in paths if path.relative_to(root).as_posix() not in listed]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `spark-submit jobs/build.py`: the spark engine on the session that spark-submit set up."""
    from longbatch.jobs.engines.spark import SparkEngine

    parser = argparse.ArgumentParser(prog="build.py", description="Build a longbatch dataset on Spark.")
    parser.add_argument("spec", help="the build spec (TOML)")
    parser.add_argument("out", help="the dataset's folder, reachable by all workers")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset after success")
    parser.add_argument("--until", help="hold what was known before this time (ISO); later days can be appended")
    given = parser.parse_args(arguments)

    def run() -> BuildSummary:
        until = parse_moment(given.until) if given.until else None
        return build(load_spec(given.spec), given.out, engine=SparkEngine(), overwrite=given.overwrite, until=until)

    return submitted(run)


def submitted(run: Callable[[], BuildSummary]) -> int:
    """Run a job that spark-submit started, tell what came of it, and return its exit code."""
    try:
        summary = run()
    except LongbatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{summary.path}: {summary.counts.requests:,} requests, {summary.counts.targets:,} targets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
