"""`longbatch simulate`: a raw log with a planted signal, the spec that builds it, and the truth beside it.

    OUT/log/day-0001.parquet ...   the log, one row per shown item, rows in order of request time
    OUT/spec.toml                  `longbatch build OUT/spec.toml DATASET`
    OUT/truth.json                 parameters, planted dirt, the books a build must come to, and the AUC that each
                                   history length makes attainable
    OUT/truth/day-0049.parquet ... the true label probabilities of the targets: never an input of a model

`simulated_world` says what is planted, `simulated_truth` what the yardstick is, `simulated_dirt` what is broken,
`simulated_misfits` which users are left out, `simulated_books` what a build must count.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from longbatch.schemas.errors import SpecError

from .corrupt_rows import ACCEPTED, Recipe, as_written, draw_corrupt_rows, mingle
from .expected_counts import add_planted, by_kind, expected_accounting, expected_counts
from .ground_truth import (
    TRUTH_VERSION,
    Sample,
    attainable_auc,
    join_samples,
    take_sample,
    truth_table,
)
from .outliers import Limits, draw_outliers, regular_limits
from .rows import Rows, draw_rows
from .spec import POLICIES, SPEC
from .world import (
    DAY_MS,
    EPOCH_MS,
    FEED,
    LONGEST_USER,
    Catalogue,
    File,
    Population,
    Requests,
    cut_files,
    draw_catalogue,
    draw_requests,
    window_start_ms,
)

SAMPLED_USERS = 200  # for the attainable AUC
WITHIN_HOURS = 1  # the window of the label "bought" of a corrupt log
THREADS = 2  # each holds one file of the log in memory
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Simulation:
    """What to simulate; the same parameters give the same log, on any number of threads.

    `events` is the exact number of clean rows; `corrupt` adds about that fraction of broken ones, and the rows of a
    few users that policies leave out (two bots have more events than any other user). `days` is the period, of which the last fifth has the targets: about `targets_per_user` requests of each active user.
    Raises SpecError for parameters that make no log.
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
            raise SpecError(f"users is {self.users}; ask for at least 1")
        if not 100 * self.users <= self.events <= LONGEST_USER // 2 * self.users:
            raise SpecError(
                f"{self.events} events are {self.events / self.users:.0f} per user; "
                f"ask for 100 to {LONGEST_USER // 2} per user"
            )
        if self.seed < 0:
            raise SpecError(f"seed is {self.seed}; use 0 or more")
        if not 0 <= self.corrupt <= 0.2:
            raise SpecError(f"corrupt is {self.corrupt}; use a fraction from 0 to 0.2")
        if self.format not in ("parquet", "csv"):
            raise SpecError(f"format is {self.format!r}; use 'parquet' or 'csv'")
        if self.days < 14:
            raise SpecError(f"days is {self.days}; use 14 or more, heavy users need them")
        if self.targets_per_user < 1 or self.history_length < 1:
            raise SpecError("targets_per_user and history_length must be 1 or more")


@dataclass(frozen=True)
class SimulationReport:
    """What was written: `rows` = clean `events` + planted rows; `targets` are the valid rows of discover requests.

    `planted`: kind of dirt or policy -> rows; `attainable`: see `simulated_truth`; `events_per_second` counts the whole
    run, yardstick included.
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
    """Everything that is drawn before the rows: the parameters, the plan of requests, and a seed for each file."""

    parameters: Simulation
    requests: Requests
    population: Population
    catalogue: Catalogue
    limits: Limits
    files: list[File]
    seeds: list[np.random.SeedSequence]
    rows_before: dict[str, list[int]]  # table of the spec -> clean rows in the files before each file


@dataclass(frozen=True)
class Written:
    """What one file contributes to the report."""

    clean_rows: int
    feed_rows: int
    rows: int
    targets: int
    planted: dict[str, dict[str, int]]
    sample: Sample


def simulate(
    out: Path,
    parameters: Simulation,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    threads: int = THREADS,
) -> SimulationReport:
    """Write a simulated log, its spec and its truth into the folder `out`, which appears complete or not at all.

    `progress` is called with ("simulate", clean rows written, all clean rows). Raises SpecError if `out` has
    anything in it, unless `overwrite`, which replaces an earlier simulation and nothing else.
    """
    refuse_occupied(out, overwrite)
    started = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        unfinished = Path(folder) / "log-to-be"
        (unfinished / "log").mkdir(parents=True)
        (unfinished / "truth").mkdir()
        plan = make_plan(parameters)
        written = write_files(unfinished, plan, progress, threads)
        attainable = attainable_auc(join_samples([file.sample for file in written]))
        (unfinished / "spec.toml").write_text(spec_text(plan))
        truth = truth_document(plan, written, attainable)
        (unfinished / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
        size_bytes = sum(path.stat().st_size for path in (unfinished / "log").iterdir())
        move_into_place(unfinished, out, Path(folder) / "replaced")
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


def spec_text(plan: Plan) -> str:
    """The build spec of the log; it tolerates the dirt that was asked for, and no more than twice that."""
    parameters = plan.parameters
    text = SPEC.format(
        history_length=parameters.history_length,
        max_rejected=max(0.01, 2 * parameters.corrupt),
        suffix=parameters.format,
    )
    if not parameters.corrupt:
        return text
    end = datetime.fromtimestamp(end_ms(parameters) / 1_000, UTC)
    until = (end + timedelta(hours=WITHIN_HOURS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return text + POLICIES.format(within=f"{WITHIN_HOURS}h", until=until, **asdict(plan.limits))


def end_ms(parameters: Simulation) -> int:
    """When the period ends: no clean request is later."""
    return EPOCH_MS + parameters.days * DAY_MS


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Raise SpecError if writing to `out` would mix with, or destroy, what is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise SpecError(f"{out} exists and is not empty; name another folder, or overwrite it explicitly")
    if not (out / "truth.json").is_file():
        raise SpecError(f"{out} is no simulated log (it has no truth.json); it will not be overwritten")


def move_into_place(unfinished: Path, out: Path, replaced: Path) -> None:
    """Rename the finished folder to `out`; what was there goes to `replaced`."""
    if out.exists():
        out.rename(replaced)
    unfinished.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def make_plan(parameters: Simulation) -> Plan:
    """Draw all that rows depend on; every random number comes from the one seed."""
    for_catalogue, for_requests, for_files = np.random.SeedSequence(parameters.seed).spawn(3)
    requests, population = draw_requests(
        parameters.users, parameters.events, parameters.days, parameters.targets_per_user, for_requests
    )
    files = cut_files(requests)
    feed_size = np.where(requests.tab == FEED, requests.size, 0)
    starts = [file.start for file in files]
    return Plan(
        parameters,
        requests,
        population,
        draw_catalogue(np.random.Generator(np.random.SFC64(for_catalogue))),
        regular_limits(requests, parameters.users),
        files,
        for_files.spawn(len(files)),
        {
            "history": rows_before(feed_size, starts),
            "requests": rows_before(requests.size - feed_size, starts),
        },
    )


def rows_before(size: np.ndarray[Any, np.dtype[np.int8]], starts: list[int]) -> list[int]:
    """For each file, which starts at the given request, the sum of the sizes of all earlier requests."""
    in_file = np.add.reduceat(size, starts, dtype=np.int64)
    before: list[int] = (np.cumsum(in_file) - in_file).tolist()
    return before


def write_files(out: Path, plan: Plan, progress: Progress | None, threads: int) -> list[Written]:
    """Draw and write all files of the log on some threads; the results are in the order of the files."""
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(write_file, out, plan, file) for file in plan.files]
        try:
            for future in as_completed(futures):
                done += future.result().clean_rows
                if progress is not None:
                    progress("simulate", done, plan.parameters.events)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def write_file(out: Path, plan: Plan, file: File) -> Written:
    """Draw one file of the log, its dirt and its truth, and write them."""
    parameters = plan.parameters
    rows_rng, corrupt_rng = (np.random.Generator(np.random.SFC64(s)) for s in plan.seeds[file.number].spawn(2))
    requests = plan.requests.between(file.start, file.stop)
    rows = draw_rows(requests, file.start + 1, plan.population, plan.catalogue, rows_rng)
    log, truth, planted = rows.log, truth_table(rows), dict[str, dict[str, int]]()
    if parameters.corrupt:
        log, truth, planted = add_corrupt_rows(plan, file, rows, truth, corrupt_rng)
    write_log(log, out / "log" / f"{file.name}.{parameters.format}")
    if truth.height or file.number == len(plan.files) - 1:  # so that there is always a table to read
        truth.write_parquet(out / "truth" / f"{file.name}.parquet", compression="zstd", compression_level=1)
    feed_rows = rows.log.height - len(rows.target_rows)
    sample = take_sample(rows, SAMPLED_USERS)
    return Written(rows.log.height, feed_rows, log.height, truth.height, planted, sample)


def add_corrupt_rows(
    plan: Plan, file: File, rows: Rows, truth: pl.DataFrame, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, dict[str, int]]]:
    """The log of a file with its dirt, the truth with the added targets, and the rows planted; outliers come last."""
    parameters, requests = plan.parameters, len(plan.requests.user)
    recipe = Recipe(parameters.corrupt, parameters.format, end_ms(parameters))
    before = {table: counts[file.number] for table, counts in plan.rows_before.items()}
    # Ids of added requests follow all clean ones; a file adds fewer requests than it has.
    dirt = draw_corrupt_rows(rows.log, before, recipe, requests + file.start + 1, rng)
    copied = truth[np.searchsorted(rows.target_rows, dirt.added["source"].to_numpy())]
    truth = pl.concat([truth, copied.with_columns(dirt.added["request_id"])])
    extra, planted = dirt.rows, dirt.planted
    if file.number == len(plan.files) - 1:
        outliers, left_out = draw_outliers(rows.log, plan.limits, parameters.users + 1, 2 * requests + 1, rng)
        extra = pl.concat([extra, as_written(outliers, parameters.format)])
        planted = add_planted([planted, left_out])
    return mingle(as_written(rows.log, parameters.format), extra, rng), truth, planted


def write_log(log: pl.DataFrame, path: Path) -> None:
    """Write one file of the log, Parquet or CSV by its suffix."""
    if path.suffix == ".csv":
        log.write_csv(path, quote_style="never")
    else:
        log.write_parquet(path, compression="zstd", compression_level=1, statistics=True)


def truth_document(
    plan: Plan, written: list[Written], attainable: dict[str, dict[str, float | None]]
) -> dict[str, Any]:
    """truth.json: what is known beside the log, but for the probabilities of single targets."""
    planted = add_planted(file.planted for file in written)
    targets = sum(file.targets for file in written)
    events = sum(file.feed_rows for file in written)
    return {
        "version": TRUTH_VERSION,
        "parameters": asdict(plan.parameters),
        "rows": sum(file.rows for file in written),
        "targets": targets,
        "target_start_ms": window_start_ms(plan.parameters.days),
        "planted": by_kind(planted),
        "planted_by_table": planted,
        "planted_but_valid": list(ACCEPTED),
        "accounting": expected_accounting(plan.parameters.events, planted).as_dict(),
        "counts": expected_counts(events, targets, planted),
        "attainable": attainable,
    }
