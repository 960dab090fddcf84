"""`longbatch build`, and the script for `spark-submit`: raw log -> dataset, committed at the very end.

spark-submit jobs/build.py SPEC OUT [--overwrite]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from longbatch.jobs.local import LocalEngine, Progress
from longbatch.jobs.tasks import FOLDERS, Built, make_samples
from longbatch.jobs.thresholds import check_built
from longbatch.schemas.errors import DatasetError, LongbatchError, MachineError, SpecError
from longbatch.schemas.ledger import Counts, RowLedger
from longbatch.schemas.shard import disk_message, shard_files
from longbatch.schemas.snapshot import Snapshot, commit, fingerprint, snapshot_numbers
from longbatch.schemas.spec import BuildSpec, load_spec
from longbatch.validation.rules import check_threshold_names


class Engine(Protocol):
    """Anything that can turn a spec into the files of a dataset."""

    def build(self, spec: BuildSpec, root: Path, attempt: str, progress: Progress) -> Built:
        """Write all files under `root`, named with `attempt`, and return what to commit."""


@dataclass(frozen=True)
class BuildSummary:
    """What a build did. bytes: all files the snapshot lists; quarantined rows are in the ledgers."""

    path: str
    snapshot: int
    fingerprint: str
    counts: Counts
    ledgers: Mapping[str, RowLedger]
    collisions: int
    shards: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = dict(self.__dict__)
        plain["counts"] = self.counts.as_dict()
        plain["ledgers"] = {source: ledger.as_dict() for source, ledger in self.ledgers.items()}
        return plain


def build(
    spec: BuildSpec,
    out: str | Path,
    *,
    engine: Engine | None = None,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> BuildSummary:
    """Build the dataset a spec describes into `out` and commit it; on any error nothing is visible and nothing left.

    `overwrite` replaces an existing dataset, after success only. Raises SpecError, SourceError, DataError
    (the data failed a check), DatasetError (`out` exists), MachineError (disk full).
    """
    check_threshold_names(spec)
    _check_suites(spec)
    root, started = Path(out), time.monotonic()
    attempt = uuid.uuid4().hex[:12]
    existing = _check_output(root, overwrite)
    with _attempt(root, attempt):
        built = (engine or LocalEngine()).build(spec, root, attempt, progress)
        check_built(spec, built, root)
        samples = make_samples(built.samples, root, attempt)
        snapshot = _snapshot(spec, built, samples, (existing[-1] if existing else 0) + 1)
        replaced = _unlisted(root, snapshot) if existing else []
        commit(root, snapshot)
    for path in replaced:
        path.unlink(missing_ok=True)
    shutil.rmtree(root / "reports", ignore_errors=True)  # of the snapshot that this one replaced
    listed = [entry for row in snapshot.shards for entry in shard_files(row)]
    listed += [*snapshot.vocabulary, *snapshot.quarantine, *snapshot.samples]
    return BuildSummary(
        path=str(root),
        snapshot=snapshot.number,
        fingerprint=snapshot.fingerprint,
        counts=snapshot.counts,
        ledgers=snapshot.ledgers,
        collisions=snapshot.collisions,
        shards=len(snapshot.shards),
        bytes=sum(entry["bytes"] for entry in listed),
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
    if not existing and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root} exists and is not a dataset; choose another output, or remove it yourself")
    return existing


@contextmanager
def _attempt(root: Path, attempt: str) -> Iterator[None]:
    """Make the folders; on any error remove every file of this attempt, and what folders are then empty.

    Other builds may be writing, or have committed, to the same root meanwhile: their files are left alone.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for folder in FOLDERS:
            for path in (root / folder).glob(f"*{attempt}*"):
                path.unlink(missing_ok=True)
        if not snapshot_numbers(root):
            _remove_empty([*(root / folder for folder in FOLDERS), *made])
        if isinstance(error, OSError):
            raise MachineError(disk_message(error, root)) from None
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _snapshot(spec: BuildSpec, built: Built, samples: list[dict[str, Any]], number: int) -> Snapshot:
    shards = tuple(sorted(built.shards, key=lambda row: (row["bucket"], row["timelines"]["path"])))
    return Snapshot(
        number=number,
        spec=spec,
        counts=built.counts,
        ledgers=dict(built.ledgers),
        collisions=built.collisions,
        shards=shards,
        vocabulary=tuple(sorted(built.vocabulary, key=lambda entry: str(entry["path"]))),
        quarantine=tuple(sorted(built.quarantine, key=lambda entry: str(entry["path"]))),
        samples=tuple(samples),
        profile=built.profile,
        log_end=built.log_end,
        fingerprint=fingerprint(spec, shards),
    )


def _unlisted(root: Path, snapshot: Snapshot) -> list[Path]:
    """Return the files to remove once `snapshot` is committed: older snapshots, and data that it does not list.

    Asked before the commit: a build that starts after it must find its own files untouched (those that were
    writing already cannot commit any more, for this one takes their number).
    """
    listed = {entry["path"] for row in snapshot.shards for entry in shard_files(row)}
    listed |= {entry["path"] for entry in (*snapshot.vocabulary, *snapshot.quarantine, *snapshot.samples)}
    paths = [path for folder in FOLDERS for path in (root / folder).iterdir()]
    return [path for path in paths if path.relative_to(root).as_posix() not in listed]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `spark-submit jobs/build.py`: the spark engine on the session that spark-submit set up."""
    from longbatch.jobs.spark import SparkEngine

    parser = argparse.ArgumentParser(prog="build.py", description="Build a longbatch dataset on Spark.")
    parser.add_argument("spec", help="the build spec (TOML)")
    parser.add_argument("out", help="the dataset's folder, reachable by all workers")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset after success")
    options = parser.parse_args(arguments)
    try:
        summary = build(load_spec(options.spec), options.out, engine=SparkEngine(), overwrite=options.overwrite)
    except LongbatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{summary.path}: {summary.counts.requests:,} requests, {summary.counts.targets:,} targets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
