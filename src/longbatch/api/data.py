"""Building, growing and checking datasets."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.open_store import FileLocation, Location
from longbatch.schemas.types import ProgressCallback, no_progress

from .arguments import EngineName, make_engine, read_spec, read_time

if TYPE_CHECKING:
    from longbatch.jobs.build import BuildSummary
    from longbatch.jobs.engines.engine import Engine
    from longbatch.jobs.forget import Forgotten
    from longbatch.jobs.vacuum import Vacuumed
    from longbatch.jobs.validate import Validation


def build(
    spec: FileLocation | BuildSpec,
    out: Location,
    *,
    engine: EngineName | Engine = "local",
    until: str | datetime | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> BuildSummary:
    """Build a dataset from raw logs: per-user timelines stored once, targets grouped by request.

    The dataset appears when everything is written. After an error nothing is left of the attempt.

    Args:
        spec: The build spec, as path or URL of a TOML file, or as a `BuildSpec`.
        out: Folder or URL to write the dataset to.
        engine: "local"; "spark", on the active Spark session or a new one; or an engine, as `LocalEngine(workers=4)`.
        until: Build only what was known before this time, so that later days can be appended. UTC if it has no offset.
        overwrite: Replace an existing dataset after the new one is complete.
        progress: Called with (stage, done, total).

    Returns:
        Rows by outcome, counts of users, requests, targets and events, bytes and seconds.

    Raises:
        SpecError: The spec is invalid or does not fit the logs.
        SourceError: A file or column of the spec does not exist.
        DataError: The data failed a check.
        DatasetError: `out` exists, and `overwrite` was not given.
        MachineError: The disk is full, or Spark finds no Java.

    Example:
        >>> import longbatch as lb
        >>> summary = lb.build("raw/spec.toml", "dataset")
        >>> summary.counts.requests > 0
        True
    """
    from longbatch.jobs.build import build as run

    return run(
        read_spec(spec),
        out,
        engine=make_engine(engine),
        overwrite=overwrite,
        until=read_time(until),
        progress=progress or no_progress,
    )


def append(
    spec: FileLocation | BuildSpec,
    dataset: Location,
    *,
    until: str | datetime,
    engine: EngineName | Engine = "local",
    progress: ProgressCallback | None = None,
) -> BuildSummary:
    """Append what became known between a dataset's newest snapshot and `until`, without reading older logs again.

    The result holds the same requests, histories and targets as one build of all logs until that time. Appending the
    same days twice changes nothing.

    Args:
        spec: The spec of the dataset. Its sources may name only the files of the new days.
        dataset: A dataset that was built with `until`.
        until: Append what was known before this time. UTC if it has no offset.
        engine: As for `build`.
        progress: Called with (stage, done, total).

    Returns:
        The summary of the dataset as it is now.

    Raises:
        SpecError: The dataset was built without `until`, or the spec differs from the dataset's.
        DataError: The data failed a check.
        MachineError: The disk is full, or Spark finds no Java.

    Example:
        >>> import longbatch as lb
        >>> first = lb.build("raw/spec.toml", "growing", until="2024-02-20")
        >>> grown = lb.append("raw/spec.toml", "growing", until="2024-03-02")
        >>> grown.counts.requests > first.counts.requests
        True
    """
    from longbatch.jobs.append import append as run

    moment = read_time(until)
    if moment is None:
        raise SpecError("append needs a time: pass until='2026-03-02'")
    return run(read_spec(spec), dataset, moment, engine=make_engine(engine), progress=progress or no_progress)


def validate(
    dataset: Location,
    *,
    against: FileLocation | BuildSpec | None = None,
    users: int | None = 20,
    seed: int = 0,
    expectations: bool = True,
    progress: ProgressCallback | None = None,
) -> Validation:
    """Check a dataset: its structure, sampled users recomputed from the raw logs, and its expectations.

    Args:
        dataset: A dataset.
        against: The spec whose logs to compare with, where they were moved. Default: the dataset's own spec.
        users: How many users to recompute from the raw logs. None: all of them.
        seed: Chooses the users.
        expectations: Also run Great Expectations on the counters and samples of the build, and write their Data Docs
            to `reports/data_docs` of the dataset. Needs `longbatch[validate]`.
        progress: Called with (stage, done, total).

    Returns:
        The findings of the audit, the results of the expectations, and `passed`.

    Raises:
        DatasetError: There is no dataset.
        SpecError: `against` is invalid.

    Example:
        >>> import longbatch as lb
        >>> lb.validate("dataset", users=2, expectations=False).passed
        True
    """
    from longbatch.jobs.validate import validate as run

    return run(
        dataset,
        None if against is None else read_spec(against),
        users=users,
        seed=seed,
        expectations=expectations,
        progress=progress or no_progress,
    )


def forget(dataset: Location, users: Iterable[str | int]) -> Forgotten:
    """Commit a snapshot of a dataset that holds nothing of these users.

    Files of older snapshots still hold them until `vacuum` removes these files.

    Args:
        dataset: A dataset.
        users: The users as the raw logs name them.

    Returns:
        How many of the users had requests, and how many files were rewritten.

    Raises:
        SpecError: A user is not a number, but the users of the dataset are.
        DatasetError: There is no dataset, or it is damaged.
        MachineError: The disk is full.

    Example:
        >>> import longbatch as lb
        >>> lb.forget("dataset", [3, 5]).users
        2
        >>> removed = lb.vacuum("dataset")
    """
    from longbatch.jobs.forget import forget as run

    return run(dataset, [str(user) for user in users])


def vacuum(dataset: Location, *, keep: int = 1) -> Vacuumed:
    """Remove older snapshots, and the files that no remaining snapshot lists and no running build writes.

    Args:
        dataset: A dataset.
        keep: How many of the newest snapshots stay, 1 or more.

    Returns:
        The snapshots, files and bytes that were removed.

    Raises:
        SpecError: `keep` is less than 1.
        DatasetError: There is no dataset, or a snapshot cannot be read.

    Example:
        >>> import longbatch as lb
        >>> lb.vacuum("dataset", keep=3).files
        0
    """
    from longbatch.jobs.vacuum import vacuum as run

    return run(dataset, keep)
