"""`longbatch bench quality`: every count of a build beside what the simulator planted, to the row.

A log with 3 % dirt of every kind, as Parquet and as CSV, is built by each engine. The truth beside the log says what
became of every row; the quarantine must hold the rejected rows, each as it stands in its file at its row.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow.compute as pc

from longbatch.jobs.build import BuildSummary, Engine, build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.schemas.types import ProgressCallback

from .checks import Check, Figure

FORMATS: tuple[Literal["parquet", "csv"], ...] = ("parquet", "csv")
FULL_EVENTS, QUICK_EVENTS = 2_000_000, 200_000
CORRUPT = 0.03


def bench_quality(
    *, quick: bool = False, spark: bool = True, folder: Path | None = None, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    """Simulate a corrupt log in each format, build it with each engine, and compare all counts with the planted ones.

    `folder` keeps the work while it lasts; by default a temporary one.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    engines: dict[str, Engine] = {"local": LocalEngine(), **({"spark": SparkEngine("local[2]")} if spark else {})}
    checks: list[Check] = []
    figures = [Figure("clean rows", events, ""), Figure("dirt", CORRUPT, "of them")]
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work:
        for number, log_format in enumerate(FORMATS):
            progress("formats", number, len(FORMATS))
            log = Path(work, log_format)
            report = simulate(log, Simulation(max(20, events // 2_000), events, 1, CORRUPT, log_format))
            figures.append(Figure(f"{log_format}: rows", report.rows, ""))
            found, seconds = compare_engines(log, engines)
            checks += found
            figures += [Figure(f"{name}: build", value, "s") for name, value in seconds.items()]
        progress("formats", 1, 1)
    return checks, figures


def compare_engines(log: Path, engines: Mapping[str, Engine]) -> tuple[list[Check], dict[str, float]]:
    """Build the simulated log in the folder `log` with each engine; the checks, and seconds by format and engine."""
    spec = load_spec(log / "spec.toml")
    checks, seconds, contents = [], {}, {}
    for engine, builds in engines.items():
        name = f"{spec.sources['log'].file_format} {engine}"
        out, started = log.with_name(f"{log.name}-{engine}"), time.monotonic()
        summary = build(spec, out, engine=builds)
        seconds[name] = time.monotonic() - started
        dataset = open_dataset(out)
        checks += compare_with_truth(name, json.loads((log / "truth.json").read_text()), summary, dataset)
        contents[name] = summary.fingerprint, content_hash(dataset.blocks(), spec.history_length)
    first = next(iter(contents.values()))
    for name, content in list(contents.items())[1:]:
        checks.append(Check(f"{name}: fingerprint is the other engine's", int(content[0] == first[0]), 1, "=="))
        checks.append(Check(f"{name}: content hash is the other engine's", int(content[1] == first[1]), 1, "=="))
    return checks, seconds


def compare_with_truth(name: str, truth: dict[str, Any], summary: BuildSummary, dataset: Dataset) -> list[Check]:
    """Each count of a build beside the planted one, the laws of the books, and what the quarantine holds."""
    accounting, planted = summary.row_accounting["log"], RowAccounting(**truth["accounting"])
    counts, expected = summary.counts.as_dict(), truth["counts"]
    outcomes = ("rows", "filtered", "rejected", "duplicate", "accepted")
    pairs = {outcome: (getattr(accounting, outcome), getattr(planted, outcome)) for outcome in outcomes}
    for what in ("reasons", "policies"):
        found, wanted = getattr(accounting, what), getattr(planted, what)
        pairs |= {f"{what}: {key}": (found.get(key, 0), wanted.get(key, 0)) for key in sorted({*found, *wanted})}
    pairs |= {f"counts: {key}": (counts[key], value) for key, value in expected.items()}
    accounted = sum(getattr(accounting, outcome) for outcome in outcomes[1:]) + sum(accounting.policies.values())
    pairs["rows with a outcome, all outcomes together"] = accounted, truth["rows"]
    pairs["targets that were bought"] = bought_targets(dataset), truth["planted"]["action"]
    pairs |= compare_quarantine(dataset, planted)
    return [Check(f"{name}: {key}", found, wanted, "==") for key, (found, wanted) in pairs.items()]


def bought_targets(dataset: Dataset) -> int:
    """Targets whose label from later actions is 1."""
    targets = (block.requests["targets"].flatten() for block in dataset.blocks())
    return sum(pc.sum(part.field("bought")).as_py() or 0 for part in targets)


def compare_quarantine(dataset: Dataset, planted: RowAccounting) -> dict[str, tuple[int, int]]:
    """What was found of the quarantined rows, and what is right: all there, labelled, and true to the log's files."""
    parts = [pl.read_parquet(dataset.path / entry.path) for entry in dataset.snapshot.quarantine]
    rows = pl.concat(parts, how="diagonal_relaxed")
    labelled = rows.filter(pl.col("_reasons").list.len() > 0).drop_nulls(["_source_file", "_source_row"])
    reasons = dict(labelled["_reasons"].explode().value_counts().rows())
    off = {key: reasons.get(key, 0) - planted.reasons.get(key, 0) for key in {*reasons, *planted.reasons}}
    true = [true_rows(file, part) for (file,), part in labelled.group_by("_source_file")]
    return {
        "quarantine: rows": (rows.height, planted.rejected),
        "quarantine: rows with reasons, file and row": (labelled.height, planted.rejected),
        "quarantine: reasons whose count is off": (sum(map(bool, off.values())), 0),
        "quarantine: rows true to file and row": (sum(true), planted.rejected),
        "quarantine: rows held twice": (
            labelled.height - labelled.n_unique(["_source_file", "_source_row"]),
            0,
        ),
    }


def true_rows(file: Any, rows: pl.DataFrame) -> int:
    """How many quarantined rows of one file of the log equal what stands there at their `_source_row`."""
    columns = [name for name in rows.columns if not name.startswith("_")]
    if file.endswith(".parquet"):
        there = pl.read_parquet(file, columns=columns)[rows["_source_row"]]
        return _equal_rows(rows.select(columns), there.select(columns))
    header, *lines = Path(file).read_text().splitlines()
    there = pl.Series("_text", lines)[rows["_source_row"]].to_frame()
    is_line = rows["_text"].is_not_null()
    fields = pl.col("_text").str.split(",").list.to_struct(fields=header.split(","))
    sound = there.filter(~is_line).select(fields).unnest("_text").select(pl.col(columns).replace("", None))
    malformed = _equal_rows(rows.filter(is_line).select("_text"), there.filter(is_line))
    return malformed + _equal_rows(rows.filter(~is_line).select(columns), sound)


def _equal_rows(rows: pl.DataFrame, others: pl.DataFrame) -> int:
    equal = [rows[name].eq_missing(others[name]) for name in rows.columns]
    return int(pl.DataFrame(equal).select(pl.all_horizontal(pl.all())).to_series().sum())
