"""`longbatch simulate`: a raw log with a planted signal, the spec that builds it, and its ground truth.

    OUT/log/day-0001.parquet ...   the log, one row per shown item, in order of request time
    OUT/spec.toml                  `longbatch build OUT/spec.toml DATASET`
    OUT/truth.json                 parameters, planted corrupt rows, the row accounting that a build must report, and
                                   the AUC that each history length makes attainable
    OUT/truth/day-0049.parquet ... the true label probabilities of the targets: never an input of a model

`world` defines the planted signal, `ground_truth` the attainable AUC, `corrupt_rows` the corrupt rows, `outliers` the
users that policies leave out, `expected_counts` what a build must count.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from longbatch.jobs.engines.worker_pool import WorkerPool
from longbatch.schemas.errors import SpecError
from longbatch.schemas.storage.local_folders import hidden_folder, replace_folder
from longbatch.schemas.types import ProgressCallback, no_progress

from .corrupt_rows import ACCEPTED, CorruptionSettings, as_written, draw_corrupt_rows, shuffle_in
from .expected_counts import add_planted, expected_accounting, expected_counts, total_by_corruption
from .ground_truth import TRUTH_VERSION, Sample, attainable_auc, join_samples, take_sample, truth_table
from .outliers import Limits, draw_outliers, regular_limits
from .rows import Rows, draw_rows
from .spec import POLICIES, SPEC
from .world import (
    DAY_MS,
    EPOCH_MS,
    FEED,
    LONGEST_USER,
    Catalog,
    File,
    Population,
    Requests,
    draw_catalog,
    draw_requests,
    split_into_files,
    target_start_ms,
)

SAMPLED_USERS = 200  # their rows are kept to compute the attainable AUC
WITHIN_HOURS = 1  # how long the label "bought" of a corrupt log waits for a purchase
THREADS = 2  # each holds one file of the log in memory


@dataclass(frozen=True)
class Simulation:
    """What to simulate. The same parameters give the same log, on any number of threads.

    Attributes:
        users: The number of users.
        events: The exact number of clean rows.
        seed: The seed of all random numbers.
        corrupt: The share of corrupt rows to add. If it is more than 0, the rows of a few outlier users are added too.
        format: The file format of the log.
        days: The length of the period. The last fifth has the targets.
        targets_per_user: About how many requests of each active user are targets.
        history_length: The history length of the spec.

    Raises:
        SpecError: The parameters make no log.
    """

    users: int = 300
    events: int = 1_200_000
    seed: int = 0
    corrupt: float = 0.0
    format: Literal["parquet", "csv"] = "parquet"
    days: int = 60
    targets_per_user: int = 40
    history_length: int = 10_000

    def __post_init__(self) -> None:
        if self.users < 1:
            raise SpecError(f"users is {self.users}; it must be 1 or more")
        if not 100 * self.users <= self.events <= LONGEST_USER // 2 * self.users:
            raise SpecError(
                f"{self.events} events are {self.events / self.users:.0f} per user; "
                f"there must be 100 to {LONGEST_USER // 2} per user"
            )
        if self.seed < 0:
            raise SpecError(f"seed is {self.seed}; it must be 0 or more")
        if not 0 <= self.corrupt <= 0.2:
            raise SpecError(f"corrupt is {self.corrupt}; it must be a share from 0 to 0.2")
        if self.format not in ("parquet", "csv"):
            raise SpecError(f"format is {self.format!r}; it must be 'parquet' or 'csv'")
        if self.days < 14:
            raise SpecError(f"days is {self.days}; it must be 14 or more, so that the events of heavy users fit")
        if self.targets_per_user < 1 or self.history_length < 1:
            raise SpecError("targets_per_user and history_length must be 1 or more")


@dataclass(frozen=True)
class SimulationReport:
    """What a simulation wrote.

    Attributes:
        out: The folder.
        rows: All rows of the log: `events` and the planted ones.
        events: The clean rows.
        targets: The valid rows of discover requests.
        requests: The requests of clean rows.
        users: The regular users.
        files: The files of the log.
        longest_user: The rows of the user with the most rows.
        size_bytes: The size of the log.
        seconds: The duration of the simulation, the attainable AUC included.
        events_per_second: `events` by `seconds`.
        planted: Planted rows by corruption or policy.
        attainable: The attainable AUC by label and history length, see `ground_truth`.
    """

    out: Path
    rows: int
    events: int
    targets: int
    requests: int
    users: int
    files: int
    longest_user: int
    size_bytes: int
    seconds: float
    events_per_second: float
    planted: dict[str, int]
    attainable: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn before the rows.

    Attributes:
        parameters: What to simulate.
        requests: All requests in time order.
        population: The interests of the users.
        catalog: The items.
        limits: How many events the spec of a corrupt log lets a user have.
        files: The files of the log.
        seeds: The seed of each file.
        rows_before: By table of the spec, the clean rows in the files before each file.
    """

    parameters: Simulation
    requests: Requests
    population: Population
    catalog: Catalog
    limits: Limits
    files: list[File]
    seeds: list[np.random.SeedSequence]
    rows_before: dict[str, list[int]]


@dataclass(frozen=True)
class Written:
    """What one file contributes to the report.

    Attributes:
        clean_rows: Rows without the planted ones.
        feed_rows: Clean rows of the feed.
        rows: All rows.
        targets: Valid targets.
        planted: Planted rows by table and corruption.
        sample: The rows of the sampled users.
    """

    clean_rows: int
    feed_rows: int
    rows: int
    targets: int
    planted: dict[str, dict[str, int]]
    sample: Sample


def simulate(
    out: Path,
    parameters: Simulation,
    progress: ProgressCallback = no_progress,
    *,
    overwrite: bool = False,
    threads: int = THREADS,
) -> SimulationReport:
    """Write a simulated log, its spec and its ground truth into a folder, which appears complete or not at all.

    Args:
        out: The folder.
        parameters: What to simulate.
        progress: Called with ("simulate", clean rows written, all clean rows).
        overwrite: Replace an earlier simulation.
        threads: The number of threads; each keeps one file of the log in memory.

    Returns:
        What was written.

    Raises:
        SpecError: `out` is not empty, and either `overwrite` was not given or it is not a simulation.
    """
    _check_output(out, overwrite)
    started = time.perf_counter()
    with hidden_folder(out) as unfinished:
        (unfinished / "log").mkdir()
        (unfinished / "truth").mkdir()
        plan = _make_plan(parameters)
        written = _write_files(unfinished, plan, progress, threads)
        attainable = attainable_auc(join_samples([file.sample for file in written]))
        (unfinished / "spec.toml").write_text(_spec_text(plan))
        truth = _truth_document(plan, written, attainable)
        (unfinished / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
        size_bytes = sum(path.stat().st_size for path in (unfinished / "log").iterdir())
        replace_folder(unfinished, out)
    seconds = time.perf_counter() - started
    return SimulationReport(
        out=out,
        rows=truth["rows"],
        events=parameters.events,
        targets=truth["targets"],
        requests=len(plan.requests.user),
        users=parameters.users,
        files=len(plan.files),
        longest_user=int(plan.population.events.max()),
        size_bytes=size_bytes,
        seconds=seconds,
        events_per_second=parameters.events / seconds,
        planted=truth["planted"],
        attainable=attainable,
    )


def _spec_text(plan: Plan) -> str:
    """The build spec of the log; it tolerates rejected rows up to twice the share of corrupt rows."""
    parameters = plan.parameters
    text = SPEC.format(
        history_length=parameters.history_length,
        max_rejected=max(0.01, 2 * parameters.corrupt),
        suffix=parameters.format,
    )
    if not parameters.corrupt:
        return text
    end = datetime.fromtimestamp(_end_ms(parameters) / 1_000, UTC)
    until = (end + timedelta(hours=WITHIN_HOURS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return text + POLICIES.format(within=f"{WITHIN_HOURS}h", until=until, **asdict(plan.limits))


def _end_ms(parameters: Simulation) -> int:
    """When the period ends, after all clean requests: milliseconds since 1970."""
    return EPOCH_MS + parameters.days * DAY_MS


def _check_output(out: Path, overwrite: bool) -> None:
    """Raise SpecError if `out` has files that are not an earlier simulation that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise SpecError(f"{out} exists and is not empty. Choose another folder, or pass --overwrite (overwrite=True).")
    if not (out / "truth.json").is_file():
        raise SpecError(
            f"{out} has no truth.json, so it is not a simulated log and is not overwritten. Choose another folder."
        )


def _make_plan(parameters: Simulation) -> Plan:
    """Draw everything that the rows depend on; every random number is derived from the one seed."""
    for_catalog, for_requests, for_files = np.random.SeedSequence(parameters.seed).spawn(3)
    requests, population = draw_requests(
        parameters.users, parameters.events, parameters.days, parameters.targets_per_user, for_requests
    )
    files = split_into_files(requests)
    feed_size = np.where(requests.tab == FEED, requests.size, 0)
    starts = [file.start for file in files]
    return Plan(
        parameters,
        requests,
        population,
        draw_catalog(np.random.Generator(np.random.SFC64(for_catalog))),
        regular_limits(requests, parameters.users),
        files,
        for_files.spawn(len(files)),
        {
            "history": _rows_before(feed_size, starts),
            "requests": _rows_before(requests.size - feed_size, starts),
        },
    )


def _rows_before(size: np.ndarray[Any, np.dtype[np.int8]], starts: list[int]) -> list[int]:
    """The sum of the sizes of all requests before each file, given the first request of each file.

    size    4 5 6 7    starts 0 2    in_file 9 13    before 0 9
    """
    in_file = np.add.reduceat(size, starts, dtype=np.int64)
    before: list[int] = (np.cumsum(in_file) - in_file).tolist()
    return before


def _write_files(out: Path, plan: Plan, progress: ProgressCallback, threads: int) -> list[Written]:
    """Draw and write all files of the log in threads; the results are in the order of the files."""
    pool = WorkerPool(threads, progress)

    def write(file: File) -> Written:
        written = _write_file(out, plan, file)
        pool.advance("simulate", written.clean_rows, plan.parameters.events)
        return written

    return pool.run_all([partial(write, file) for file in plan.files])


def _write_file(out: Path, plan: Plan, file: File) -> Written:
    """Draw and write one file of the log with its corrupt rows, and its ground truth."""
    parameters = plan.parameters
    rows_rng, corrupt_rng = (np.random.Generator(np.random.SFC64(s)) for s in plan.seeds[file.number].spawn(2))
    requests = plan.requests.between(file.start, file.stop)
    rows = draw_rows(requests, file.start + 1, plan.population, plan.catalog, rows_rng)
    log, truth, planted = rows.log, truth_table(rows), dict[str, dict[str, int]]()
    if parameters.corrupt:
        log, truth, planted = _add_corrupt_rows(plan, file, rows, truth, corrupt_rng)
    _write_log(log, out / "log" / f"{file.name}.{parameters.format}")
    if (
        truth.height or file.number == len(plan.files) - 1
    ):  # the last file always has one, so that there is a table to read
        truth.write_parquet(out / "truth" / f"{file.name}.parquet", compression="zstd", compression_level=1)
    feed_rows = rows.log.height - len(rows.target_rows)
    sample = take_sample(rows, SAMPLED_USERS)
    return Written(rows.log.height, feed_rows, log.height, truth.height, planted, sample)


def _add_corrupt_rows(
    plan: Plan, file: File, rows: Rows, truth: pl.DataFrame, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, dict[str, int]]]:
    """The log of a file with its corrupt rows, its truth with the added targets, and the planted rows.

    The last file also gets the outlier users.
    """
    parameters, requests = plan.parameters, len(plan.requests.user)
    settings = CorruptionSettings(parameters.corrupt, parameters.format, _end_ms(parameters))
    before = {table: counts[file.number] for table, counts in plan.rows_before.items()}
    # Ids of added requests follow all clean ones. A file adds fewer requests than it has, so ids do not collide.
    corrupt = draw_corrupt_rows(rows.log, before, settings, requests + file.start + 1, rng)
    copied = truth[np.searchsorted(rows.target_rows, corrupt.added["source"].to_numpy())]
    truth = pl.concat([truth, copied.with_columns(corrupt.added["request_id"])])
    extra, planted = corrupt.rows, corrupt.planted
    if file.number == len(plan.files) - 1:
        outliers, planted_outliers = draw_outliers(rows.log, plan.limits, parameters.users + 1, 2 * requests + 1, rng)
        extra = pl.concat([extra, as_written(outliers, parameters.format)])
        planted = add_planted([planted, planted_outliers])
    return shuffle_in(as_written(rows.log, parameters.format), extra, rng), truth, planted


def _write_log(log: pl.DataFrame, path: Path) -> None:
    """Write one file of the log, as Parquet or CSV by its suffix."""
    if path.suffix == ".csv":
        log.write_csv(path, quote_style="never")
    else:
        log.write_parquet(path, compression="zstd", compression_level=1, statistics=True)


def _truth_document(
    plan: Plan, written: list[Written], attainable: dict[str, dict[str, float | None]]
) -> dict[str, Any]:
    """The content of truth.json: everything but the probabilities of single targets."""
    planted = add_planted(file.planted for file in written)
    targets = sum(file.targets for file in written)
    events = sum(file.feed_rows for file in written)
    return {
        "version": TRUTH_VERSION,
        "parameters": asdict(plan.parameters),
        "rows": sum(file.rows for file in written),
        "targets": targets,
        "target_start_ms": target_start_ms(plan.parameters.days),
        "planted": total_by_corruption(planted),
        "planted_by_table": planted,
        "planted_but_valid": list(ACCEPTED),
        "accounting": expected_accounting(plan.parameters.events, planted).as_dict(),
        "counts": expected_counts(events, targets, planted),
        "attainable": attainable,
    }
