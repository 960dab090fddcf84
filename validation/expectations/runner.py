"""Great Expectations over a dataset: runs the suites of its spec, and the user's own, and writes Data Docs.

No row is scanned for it: the suites run on the counters and the samples that the build took in passes it made anyway.
Great Expectations is imported when it is needed, for that takes seconds, and keeps everything in memory but the pages.
"""

from __future__ import annotations

import html
import logging
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.shard import disk_message
from longbatch.schemas.profile import TABLES, Profile, TableName, TableProfile
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import ProgressCallback, no_progress

from .frames import profile_frame, sample_frame, sources_frame
from .generated_suites import LARGEST, MEAN, SMALLEST, SPREAD, Expectation, Suite, generated_suites
from .gx_import import great_expectations
from .user_suite import read_own_suite

INDEX = "index.html"
SHOWN = 200  # characters of what Great Expectations says went wrong
IF_NOT = " (if not, a warning)"


@dataclass(frozen=True)
class SuiteResult:
    """What came of one suite: on how many rows, how many expectations, and a sentence for each that was not met."""

    name: str
    checked: str
    rows: int
    expectations: int
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExpectationResults:
    """What came of all suites, and the path of the first page of Data Docs."""

    suites: tuple[SuiteResult, ...]
    data_docs: str

    @property
    def failures(self) -> list[str]:
        """A sentence for each expectation that was not met, but for warnings."""
        return [sentence for suite in self.suites for sentence in suite.failures]

    @property
    def warnings(self) -> list[str]:
        """A sentence for each warning: data can be sound and look like that."""
        return [sentence for suite in self.suites for sentence in suite.warnings]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Check:
    """A suite of Great Expectations' objects, the pandas frame it runs on, and what that frame stands for."""

    name: str
    frame: Any
    expectations: list[Any]
    checked: str
    rows: int


def run_expectations(
    spec: BuildSpec,
    profile: Profile,
    samples: Mapping[TableName, pl.DataFrame],
    row_accounting: Mapping[str, RowAccounting],
    out: str | Path,
    progress: ProgressCallback = no_progress,
) -> ExpectationResults:
    """Run all suites of a spec on a build's profile, samples and books, and write Data Docs to the folder `out`.

    `out` is replaced as a whole once everything has run. Raises SpecError for a user's suite that cannot be used,
    MachineError where Great Expectations is not installed or `out` cannot be written.
    """
    out = Path(out).absolute()
    with _quiet(), _replacing(out) as folder:
        progress("expectations", 0, 1)
        context = _context()
        checks = _checks(spec, profile, samples, row_accounting)
        results = []
        for number, check in enumerate(checks, start=1):
            results.append(_run(context, check))
            progress("expectations", number, len(checks))
        progress("data docs", 0, 1)
        _write_pages(context, spec.name, results, folder)
        progress("data docs", 1, 1)
    return ExpectationResults(tuple(results), str(out / INDEX))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings and the log of Great Expectations and of pandas below it to themselves."""
    logger = logging.getLogger("great_expectations")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out`, and put it in its place at the end, so that no page of an earlier run stays."""
    building = out.with_name(f".{out.name}-{uuid.uuid4().hex[:12]}")
    replaced = building.with_name(f"{building.name}-replaced")
    try:
        building.mkdir(parents=True)
        yield building
        if out.exists():
            out.rename(replaced)
        building.rename(out)
    except OSError as error:
        raise MachineError(disk_message(error, out)) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _context() -> Any:
    """Return a context that lives in memory, sends nothing and draws no progress bars."""
    gx = great_expectations()
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


# What to run on what


def _checks(
    spec: BuildSpec,
    profile: Profile,
    samples: Mapping[TableName, pl.DataFrame],
    row_accounting: Mapping[str, RowAccounting],
) -> list[_Check]:
    """Return the generated suites, and the user's own, each with the frame it runs on."""
    tables = {table: profile.tables.get(table, TableProfile()) for table in TABLES}
    frames = {table: sample_frame(table, samples[table]) for table in TABLES}
    sampled = {table: _sampled(len(frames[table]), tables[table].rows) for table in TABLES}
    checks = []
    for suite in generated_suites(spec):
        table = suite.table
        if table == "sources":
            rows = sum(accounting.rows for accounting in row_accounting.values())
            frame, checked = sources_frame(spec, row_accounting), f"the books of {rows:,} rows"
        elif suite.kind == "counters":
            rows = tables[table].rows
            frame, checked = profile_frame(spec, table, profile), f"counters of all {rows:,} rows"
            suite = replace(suite, expectations=tuple(_with_something_to_see(suite, tables[table])))
        else:
            rows, frame, checked = len(frames[table]), frames[table], sampled[table]
        checks.append(_Check(suite.name, frame, [_as_gx(one) for one in suite.expectations], checked, rows))
    return [*checks, *_own_checks(spec, frames, sampled)]


def _own_checks(spec: BuildSpec, frames: Mapping[TableName, Any], sampled: Mapping[TableName, str]) -> Iterator[_Check]:
    for table in TABLES:
        path: str | None = getattr(spec.expectations, table)
        if path is not None:
            frame = frames[table]
            expectations = read_own_suite(Path(path), list(frame.columns))
            yield _Check(f"{table}, own suite", frame, expectations, f"{sampled[table]}, by {path}", len(frame))


def _sampled(rows: int, of: int) -> str:
    return f"all {rows:,} rows" if rows == of else f"a sample of {rows:,} of {of:,} rows"


def _with_something_to_see(suite: Suite, table: TableProfile) -> Iterator[Expectation]:
    """Yield the expectations of counters that are there: a column that is always null has no smallest value."""
    for expectation in suite.expectations:
        column = table.columns.get(expectation.column or "")
        is_empty = column is not None and column.nulls == table.rows
        if not is_empty or expectation.statistic not in (SMALLEST, LARGEST, MEAN, SPREAD):
            yield expectation


def _as_gx(expectation: Expectation) -> Any:
    """Return an object of Great Expectations; Data Docs shows what it says, as HTML."""
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    return ExpectationConfiguration(
        type=expectation.type,
        kwargs=dict(expectation.kwargs),
        description=html.escape(expectation.says + (IF_NOT if expectation.is_warning else "")),
        severity="warning" if expectation.is_warning else "critical",
    ).to_domain_obj()


# Running, and reading what came of it


def _run(context: Any, check: _Check) -> SuiteResult:
    """Validate the frame by the suite; both are stored in the context, for Data Docs."""
    gx = great_expectations()
    from great_expectations.core.run_identifier import RunIdentifier

    suite = context.suites.add(gx.ExpectationSuite(name=check.name, expectations=check.expectations))
    source = context.data_sources.add_or_update_pandas("longbatch")
    batch = source.add_dataframe_asset(check.name).add_batch_definition_whole_dataframe("whole")
    definition = gx.ValidationDefinition(name=check.name, data=batch, suite=suite)
    run = context.validation_definitions.add(definition)
    outcome = run.run(batch_parameters={"dataframe": check.frame}, run_id=RunIdentifier(run_name="validate"))
    missed = [result for result in outcome.results if not result.success]
    failures = tuple(_sentence(check.name, one) for one in missed if not _is_warning(one))
    warned = tuple(_sentence(check.name, one) for one in missed if _is_warning(one))
    return SuiteResult(check.name, check.checked, check.rows, len(outcome.results), failures, warned)


def _is_warning(result: Any) -> bool:
    return str(result.expectation_config.severity.value) != "critical"


def _sentence(suite: str, result: Any) -> str:
    """Say which expectation of which suite was not met, on which column, and what was seen."""
    config = result.expectation_config
    kwargs = {key: value for key, value in config.kwargs.items() if key != "batch_id"}
    says = html.unescape(config.description or ", ".join(f"{key} = {value!r}" for key, value in kwargs.items()))
    column = f" on {kwargs['column']}" if "column" in kwargs else ""
    return f"{suite}: {says.removesuffix(IF_NOT)}: {_observed(result)} ({config.type}{column})"


def _observed(result: Any) -> str:
    raised = _raised(result.exception_info)
    if raised:
        return f"cannot be told, {raised if len(raised) <= SHOWN else raised[:SHOWN] + ' ...'}"
    found = result.result
    if found.get("unexpected_count"):
        some = list(dict.fromkeys(map(_text, found.get("partial_unexpected_list", []))))[:3]
        return f"{found['unexpected_count']:,} of {found['element_count']:,} are not, such as {', '.join(some)}"
    return f"observed {_text(found.get('observed_value'))}"


def _text(value: Any) -> str:
    """Return a value as text; pandas has several nulls."""
    text = str(value)
    return "null" if text in ("None", "<NA>", "nan", "NaT") else text


def _raised(info: Mapping[str, Any]) -> str:
    """Return the message of an exception that Great Expectations met, which it lists by metric; "" if none."""
    for one in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if one.get("raised_exception"):
            return str(one["exception_message"])
    return ""


# Pages


def _write_pages(context: Any, title: str, results: list[SuiteResult], folder: Path) -> None:
    """Write Data Docs: Great Expectations' pages of suites and results, and a first page of what came of them."""
    from .data_docs import index_page, write_site

    links = write_site(context, folder, {one.name: (one.checked, *_verdict(one)) for one in results})
    rows = [(one.name, one.checked, str(one.expectations), *_verdict(one)) for one in results]
    lists = {
        "Not met": [sentence for one in results for sentence in one.failures],
        "Warnings": [sentence for one in results for sentence in one.warnings],
    }
    (folder / INDEX).write_text(index_page(f"Data Docs: {title}", rows, links, lists), encoding="utf-8")


def _verdict(result: SuiteResult) -> tuple[str, str]:
    """Return what came of a suite in words, and the class of its color."""
    failed, warned = len(result.failures), len(result.warnings)
    besides = f", {warned} {'warning' if warned == 1 else 'warnings'}" if warned else ""
    if failed:
        return f"{failed} not met{besides}", "failed"
    return f"all met{besides}", "warned" if warned else "passed"
