"""Run Great Expectations on a dataset: the suites of its spec and the user's own suites; write Data Docs.

No row of the dataset is read: suites run on the counters and samples that the build collected. Great Expectations is
imported on first use, because its import takes seconds, and keeps everything in memory except the pages.
"""

from __future__ import annotations

import html
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import MachineError
from longbatch.schemas.profile import TABLES, Profile, TableName, TableProfile
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.local_folders import disk_message, hidden_folder, replace_folder
from longbatch.schemas.types import ProgressCallback, no_progress

from .frames import PandasFrame, profile_frame, sample_frame, sources_frame
from .generated_suites import LARGEST, MEAN, SMALLEST, SPREAD, Expectation, Suite, generated_suites
from .gx_import import GxContext, GxExpectation, GxResult, great_expectations
from .user_suite import read_user_suite

if TYPE_CHECKING:
    from .data_docs import SuiteSummary

INDEX = "index.html"
MESSAGE_LENGTH = 200  # characters shown of an error inside Great Expectations
WARNING_NOTE = " (only a warning)"


@dataclass(frozen=True)
class SuiteResult:
    """The result of one suite.

    Attributes:
        name: Name of the suite.
        checked: What it ran on, in words.
        rows: Number of rows that it ran on, or that its counters cover.
        expectations: Number of expectations.
        failures: A sentence for each expectation that was not met.
        warnings: A sentence for each expectation that was not met and is only a warning.
    """

    name: str
    checked: str
    rows: int
    expectations: int
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExpectationResults:
    """The results of all suites.

    Attributes:
        suites: The results, in the order in which the suites ran.
        data_docs: Path of the first page of Data Docs.
    """

    suites: tuple[SuiteResult, ...]
    data_docs: str

    @property
    def failures(self) -> list[str]:
        """A sentence for each expectation that was not met, without warnings."""
        return [sentence for suite in self.suites for sentence in suite.failures]

    @property
    def warnings(self) -> list[str]:
        """A sentence for each warning: the dataset may be valid all the same."""
        return [sentence for suite in self.suites for sentence in suite.warnings]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Check:
    """A suite of Great Expectations' objects, the frame it runs on, and what that frame covers, in words and rows."""

    name: str
    frame: PandasFrame
    expectations: list[GxExpectation]
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
    """Run all suites of a spec on the profile, samples and row accounting of a build, and write Data Docs.

    Args:
        spec: The build spec.
        profile: The profile of the build.
        samples: The sampled rows of each table.
        row_accounting: Row counts by source.
        out: Folder for Data Docs; replaced once everything has run.
        progress: Called with the number of suites that have run.

    Returns:
        The results.

    Raises:
        SpecError: A user's suite is not valid.
        MachineError: Great Expectations is not installed, or `out` cannot be written.
    """
    out = Path(out).absolute()
    with _silent_great_expectations(), _replaced_folder(out) as folder:
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
def _silent_great_expectations() -> Iterator[None]:
    """Suppress the log of Great Expectations, and warnings from it and from pandas."""
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
def _replaced_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder next to `out` that replaces it at the end, so that no page of an earlier run remains."""
    try:
        with hidden_folder(out) as unfinished:
            yield unfinished
            replace_folder(unfinished, out)
    except OSError as error:
        raise MachineError(disk_message(error, out)) from None


def _context() -> GxContext:
    """Return a context that exists in memory only, sends nothing and draws no progress bars."""
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


# Which suites run on which frames


def _checks(
    spec: BuildSpec,
    profile: Profile,
    samples: Mapping[TableName, pl.DataFrame],
    row_accounting: Mapping[str, RowAccounting],
) -> list[_Check]:
    """Return the generated suites and the user's own, each with the frame it runs on."""
    tables = {table: profile.tables.get(table, TableProfile()) for table in TABLES}
    frames = {table: sample_frame(table, samples[table]) for table in TABLES}
    sampled = {table: _describe_sample(len(frames[table]), tables[table].rows) for table in TABLES}
    checks = []
    for suite in generated_suites(spec):
        table, expectations = suite.table, suite.expectations
        if table == "sources":
            rows = sum(accounting.rows for accounting in row_accounting.values())
            frame, checked = sources_frame(spec, row_accounting), f"row accounting of {rows:,} rows"
        elif suite.basis == "counters":
            rows = tables[table].rows
            frame, checked = profile_frame(spec, table, profile), f"counters of all {rows:,} rows"
            expectations = tuple(_on_existing_counters(suite, tables[table]))
        else:
            rows, frame, checked = len(frames[table]), frames[table], sampled[table]
        checks.append(_Check(suite.name, frame, list(map(_to_gx, expectations)), checked, rows))
    return [*checks, *_user_checks(spec, frames, sampled)]


def _user_checks(
    spec: BuildSpec, frames: Mapping[TableName, PandasFrame], sampled: Mapping[TableName, str]
) -> Iterator[_Check]:
    for table in TABLES:
        path: str | None = getattr(spec.expectations, table)
        if path is not None:
            frame = frames[table]
            expectations = read_user_suite(path, list(frame.columns))
            yield _Check(
                f"{table}, user suite", frame, expectations, f"{sampled[table]}, suite from {path}", len(frame)
            )


def _describe_sample(rows: int, of: int) -> str:
    return f"all {rows:,} rows" if rows == of else f"a sample of {rows:,} of {of:,} rows"


def _on_existing_counters(suite: Suite, table: TableProfile) -> Iterator[Expectation]:
    """Yield the expectations whose counter exists: a column that is always null has no smallest value."""
    for expectation in suite.expectations:
        column = table.columns.get(expectation.column or "")
        is_empty = column is not None and column.nulls == table.rows
        if not is_empty or expectation.statistic not in (SMALLEST, LARGEST, MEAN, SPREAD):
            yield expectation


def _to_gx(expectation: Expectation) -> GxExpectation:
    """Return an object of Great Expectations; Data Docs shows its description as HTML."""
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    return ExpectationConfiguration(
        type=expectation.type,
        kwargs=dict(expectation.kwargs),
        description=html.escape(expectation.statement + (WARNING_NOTE if expectation.is_warning else "")),
        severity="warning" if expectation.is_warning else "critical",
    ).to_domain_obj()


# Running a suite, and describing its results


def _run(context: GxContext, check: _Check) -> SuiteResult:
    """Validate a frame by a suite; the context stores both for Data Docs."""
    gx = great_expectations()
    from great_expectations.core.run_identifier import RunIdentifier

    suite = context.suites.add(gx.ExpectationSuite(name=check.name, expectations=check.expectations))
    source = context.data_sources.add_or_update_pandas("longbatch")
    batch = source.add_dataframe_asset(check.name).add_batch_definition_whole_dataframe("whole")
    definition = gx.ValidationDefinition(name=check.name, data=batch, suite=suite)
    validation = context.validation_definitions.add(definition)
    outcome = validation.run(batch_parameters={"dataframe": check.frame}, run_id=RunIdentifier(run_name="validate"))
    not_met = [result for result in outcome.results if not result.success]
    return SuiteResult(
        name=check.name,
        checked=check.checked,
        rows=check.rows,
        expectations=len(outcome.results),
        failures=tuple(_sentence(check.name, result) for result in not_met if not _is_warning(result)),
        warnings=tuple(_sentence(check.name, result) for result in not_met if _is_warning(result)),
    )


def _is_warning(result: GxResult) -> bool:
    return str(result.expectation_config.severity.value) != "critical"


def _sentence(suite: str, result: GxResult) -> str:
    """Return which expectation of which suite was not met, on which column, and what was observed."""
    config = result.expectation_config
    kwargs = {key: value for key, value in config.kwargs.items() if key != "batch_id"}
    statement = html.unescape(config.description or ", ".join(f"{key} = {value!r}" for key, value in kwargs.items()))
    column = f" on {kwargs['column']}" if "column" in kwargs else ""
    return f"{suite}: {statement.removesuffix(WARNING_NOTE)}: {_observed(result)} ({config.type}{column})"


def _observed(result: GxResult) -> str:
    error = _error_message(result.exception_info)
    if error:
        return f"failed with: {error if len(error) <= MESSAGE_LENGTH else error[:MESSAGE_LENGTH] + ' ...'}"
    details = result.result
    if details.get("unexpected_count"):
        examples = list(dict.fromkeys(map(_format, details.get("partial_unexpected_list", []))))[:3]
        unexpected, rows = details["unexpected_count"], details["element_count"]
        return f"not so in {unexpected:,} of {rows:,} rows, for example {', '.join(examples)}"
    return f"observed {_format(details.get('observed_value'))}"


def _format(value: object) -> str:
    """Return a value as a string; pandas has several nulls."""
    string = str(value)
    return "null" if string in ("None", "<NA>", "nan", "NaT") else string


def _error_message(exception_info: Mapping[str, Any]) -> str:
    """Return the message of an error inside Great Expectations, which may be listed by metric; "" if none."""
    for entry in [exception_info, *(value for value in exception_info.values() if isinstance(value, dict))]:
        if entry.get("raised_exception"):
            return str(entry["exception_message"])
    return ""


# Pages


def _write_pages(context: GxContext, title: str, results: list[SuiteResult], folder: Path) -> None:
    """Write Data Docs: Great Expectations' pages of suites and results, and a first page with all results."""
    from .data_docs import index_page, write_site

    summaries = [_summary(result) for result in results]
    lists = {
        "Not met": [sentence for result in results for sentence in result.failures],
        "Warnings": [sentence for result in results for sentence in result.warnings],
    }
    links = write_site(context, folder, summaries)
    (folder / INDEX).write_text(index_page(f"Data Docs: {title}", summaries, links, lists), encoding="utf-8")


def _summary(result: SuiteResult) -> SuiteSummary:
    from .data_docs import SuiteSummary

    failed, warned = len(result.failures), len(result.warnings)
    suffix = f", {warned} {'warning' if warned == 1 else 'warnings'}" if warned else ""
    if failed:
        verdict, css_class = f"{failed} not met{suffix}", "failed"
    else:
        verdict, css_class = f"all met{suffix}", "warned" if warned else "passed"
    return SuiteSummary(result.name, result.checked, result.expectations, verdict, css_class)
