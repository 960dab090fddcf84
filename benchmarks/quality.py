"""`longbatch bench quality`: every count of a build is compared, to the row, with what the simulator planted.

A log with 3 % corrupt rows of every type, as Parquet and as CSV, is built by each engine. The ground truth next to the
log contains the outcome of every row. The quarantine must contain the rejected rows, each equal to its row in its file.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.engines.engine import Engine
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.schemas.types import ArrowListArray, ProgressCallback

from .checks import WORK_PREFIX, Check, Figure, Results, hash_of

FORMATS: tuple[Literal["parquet", "csv"], ...] = ("parquet", "csv")
FULL_EVENTS, QUICK_EVENTS = 2_000_000, 200_000
CORRUPT = 0.03


def bench_quality(
    *, quick: bool = False, spark: bool = True, folder: Path | None = None, progress: ProgressCallback
) -> Results:
    """Simulate a corrupt log in each format, build it with each engine, and compare all counts with the planted ones.

    Args:
        quick: Use a smaller log.
        spark: Include the spark engine.
        folder: Where the work folder is created.
        progress: Called before each format.

    Returns:
        Every count as a check, times as figures.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    engines: dict[str, Engine] = {"local": LocalEngine(), **({"spark": SparkEngine("local[2]")} if spark else {})}
    checks: list[Check] = []
    figures = [Figure("clean rows", events), Figure("corrupt rows", CORRUPT, "per clean row")]
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work:
        for number, log_format in enumerate(FORMATS):
            progress("formats", number, len(FORMATS))
            log = Path(work, log_format)
            report = simulate(log, Simulation(max(20, events // 2_000), events, 1, CORRUPT, log_format))
            figures.append(Figure(f"{log_format}: rows", report.rows))
            compared, seconds = compare_engines(log, engines)
            checks += compared
            figures += [Figure(f"{name}: build", value, "s") for name, value in seconds.items()]
        progress("formats", 1, 1)
    return Results(checks, figures)


def compare_engines(log: Path, engines: Mapping[str, Engine]) -> tuple[list[Check], dict[str, float]]:
    """Build a simulated log with each engine.

    Args:
        log: Folder of the log, its spec and its ground truth.
        engines: The engines by name.

    Returns:
        The checks, and the seconds of each build by format and engine.
    """
    spec = load_spec(log / "spec.toml")
    checks, seconds, contents = [], {}, {}
    for engine_name, engine in engines.items():
        name = f"{spec.sources['log'].file_format} {engine_name}"
        out, started = log.with_name(f"{log.name}-{engine_name}"), time.monotonic()
        summary = build(spec, out, engine=engine)
        seconds[name] = time.monotonic() - started
        dataset = open_dataset(out)
        checks += compare_with_truth(name, json.loads((log / "truth.json").read_text()), summary, dataset)
        contents[name] = summary.fingerprint, hash_of(dataset)
    first = next(iter(contents.values()))
    for name, content in list(contents.items())[1:]:
        checks.append(
            Check(f"{name}: fingerprint equals that of the other engine", int(content[0] == first[0]), 1, "==")
        )
        checks.append(
            Check(f"{name}: content hash equals that of the other engine", int(content[1] == first[1]), 1, "==")
        )
    return checks, seconds


def compare_with_truth(name: str, truth: dict[str, Any], summary: BuildSummary, dataset: Dataset) -> list[Check]:
    """Compare each count of a build with the planted one, check the accounting identities, and the quarantine.

    Args:
        name: Format and engine, for the names of the checks.
        truth: The ground truth that the simulator wrote.
        summary: The summary of the build.
        dataset: The built dataset.
    """
    accounting, planted = summary.row_accounting["log"], RowAccounting(**truth["accounting"])
    counts, expected = summary.counts.as_dict(), truth["counts"]
    outcomes = ("rows", "filtered", "rejected", "duplicate", "accepted")
    pairs = {outcome: (getattr(accounting, outcome), getattr(planted, outcome)) for outcome in outcomes}
    for what in ("reasons", "policies"):
        actual, wanted = getattr(accounting, what), getattr(planted, what)
        pairs |= {f"{what}: {key}": (actual.get(key, 0), wanted.get(key, 0)) for key in sorted({*actual, *wanted})}
    pairs |= {f"counts: {key}": (counts[key], value) for key, value in expected.items()}
    accounted = sum(getattr(accounting, outcome) for outcome in outcomes[1:]) + sum(accounting.policies.values())
    pairs["rows with an outcome, all outcomes together"] = accounted, truth["rows"]
    pairs["targets that were bought"] = bought_targets(dataset), truth["planted"]["action"]
    pairs |= compare_quarantine(dataset, planted)
    return [Check(f"{name}: {key}", actual, wanted, "==") for key, (actual, wanted) in pairs.items()]


def bought_targets(dataset: Dataset) -> int:
    """Count the targets whose delayed label `bought` is 1."""
    lists = (cast("ArrowListArray", block.requests["targets"]) for block in dataset.blocks())
    targets = (cast("pa.StructArray", part.flatten()) for part in lists)
    return sum(int(pc.sum(part.field("bought")).as_py() or 0) for part in targets)


def compare_quarantine(dataset: Dataset, planted: RowAccounting) -> dict[str, tuple[int, int]]:
    """Compare the quarantine with the planted rows.

    Args:
        dataset: The built dataset.
        planted: What the simulator planted.

    Returns:
        For each check its actual and its expected count: all rejected rows are there, have reasons, and equal the rows
        of the log's files.
    """
    parts = [pl.read_parquet(io.BytesIO(dataset.store.read(entry.path))) for entry in dataset.snapshot.quarantine]
    rows = pl.concat(parts, how="diagonal_relaxed")
    labeled = rows.filter(pl.col("_reasons").list.len() > 0).drop_nulls(["_source_file", "_source_row"])
    reasons = dict(labeled["_reasons"].explode().value_counts().rows())
    differences = {key: reasons.get(key, 0) - planted.reasons.get(key, 0) for key in {*reasons, *planted.reasons}}
    equal = [equal_to_file(str(file), part) for (file,), part in labeled.group_by("_source_file")]
    return {
        "quarantine: rows": (rows.height, planted.rejected),
        "quarantine: rows with reasons, file and row": (labeled.height, planted.rejected),
        "quarantine: reasons whose count differs": (sum(map(bool, differences.values())), 0),
        "quarantine: rows equal to their row of the file": (sum(equal), planted.rejected),
        "quarantine: rows contained twice": (
            labeled.height - labeled.n_unique(["_source_file", "_source_row"]),
            0,
        ),
    }


def equal_to_file(file: str, rows: pl.DataFrame) -> int:
    """Count the quarantined rows of one file of the log that equal the file's row number `_source_row`.

    Args:
        file: Path of the file, Parquet or CSV.
        rows: Quarantined rows of this file.
    """
    columns = [name for name in rows.columns if not name.startswith("_")]
    if file.endswith(".parquet"):
        original = pl.read_parquet(file, columns=columns)[rows["_source_row"]]
        return _equal_rows(rows.select(columns), original.select(columns))
    header, *lines = Path(file).read_text().splitlines()
    original = pl.Series("_text", lines)[rows["_source_row"]].to_frame()
    # a malformed line is quarantined as text, a parsed row by its columns
    is_line = rows["_text"].is_not_null()
    fields = pl.col("_text").str.split(",").list.to_struct(fields=header.split(","))
    parsed = original.filter(~is_line).select(fields).unnest("_text").select(pl.col(columns).replace("", None))
    malformed = _equal_rows(rows.filter(is_line).select("_text"), original.filter(is_line))
    return malformed + _equal_rows(rows.filter(~is_line).select(columns), parsed)


def _equal_rows(rows: pl.DataFrame, others: pl.DataFrame) -> int:
    equal = [rows[name].eq_missing(others[name]) for name in rows.columns]
    return int(pl.DataFrame(equal).select(pl.all_horizontal(pl.all())).to_series().sum())
