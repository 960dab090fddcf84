"""A user's own expectation suite: a JSON file in Great Expectations' format, read without running any code in it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from longbatch.schemas.errors import SpecError
from longbatch.schemas.storage.open_store import FileLocation, read_file

from .gx_import import GxExpectation, great_expectations

KEYS = ("type", "kwargs", "severity", "description", "notes", "meta")
IGNORED_KEYS = ("id", "rendered_content", "success_on_last_run")  # Great Expectations writes them
# These expect certain columns to exist, so they may name columns that do not.
ABOUT_COLUMN_NAMES = (
    "expect_column_to_exist",
    "expect_table_columns_to_match_set",
    "expect_table_columns_to_match_ordered_list",
)
NEED_SQL = (
    "unexpected_rows_expectation",
    "expect_query_results_to_match_comparison",
    "expect_table_row_count_to_equal_other_table",
)


def read_user_suite(path: FileLocation, columns: Collection[str]) -> list[GxExpectation]:
    """Read a suite file.

    Args:
        path: Path or URL of the JSON file.
        columns: The columns of the table that the suite will run on.

    Returns:
        The expectations, ready to run.

    Raises:
        SpecError: The file is missing or not a suite; or an expectation is unknown or incomplete, needs a database or
            a parameter, names an unknown column, or has a condition that would be run as code.
    """
    return [_expectation(path, number, entry, columns) for number, entry in enumerate(_entries(path), start=1)]


def _entries(path: FileLocation) -> list[object]:
    try:
        suite = json.loads(read_file(path))
    except OSError as error:
        raise SpecError(
            f"cannot read the expectation suite {path}: {error.strerror}. Fix its path in [expectations]."
        ) from None
    except ValueError as error:
        raise SpecError(f"the expectation suite {path} is not JSON: {error}") from None
    entries = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(entries, list):
        raise SpecError(
            f"{path} is not an expectation suite. Write "
            '{"name": "...", "expectations": [{"type": "expect_...", "kwargs": {...}}]}.'
        )
    return entries


def _expectation(path: FileLocation, number: int, value: object, columns: Collection[str]) -> GxExpectation:
    great_expectations()
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    label = f"{path}, expectation {number}"
    entry = _check_entry(label, value)
    type_name, kwargs = entry["type"], entry.get("kwargs", {})
    _check_columns(label, _named_columns(type_name, kwargs), columns)
    try:
        config = {**{key: entry[key] for key in KEYS if key in entry}, "kwargs": dict(kwargs)}
        expectation = ExpectationConfiguration(**config).to_domain_obj()
    except Exception as error:  # whatever Great Expectations raises for wrong arguments
        raise SpecError(f"{label} ({type_name}) is not valid: {error}") from None
    condition = getattr(expectation, "row_condition", None)
    if condition is not None:
        _check_columns(label, _condition_columns(label, condition.dict()), columns)
    return expectation


def _check_entry(label: str, entry: object) -> dict[str, Any]:
    """Return the entry if it is an expectation that can run on a table in memory."""
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    if not isinstance(entry, dict) or not isinstance(entry.get("kwargs", {}), dict):
        raise SpecError(f'{label} is {entry!r}. Write {{"type": "expect_...", "kwargs": {{...}}}}.')
    unknown = sorted(set(entry) - {*KEYS, *IGNORED_KEYS})
    if unknown:
        raise SpecError(f"{label} has the unknown key {unknown[0]!r}. The keys are {', '.join(KEYS)}.")
    types, type_name = list_registered_expectation_implementations(), str(entry.get("type"))
    if type_name not in types:
        raise SpecError(f"{label}: unknown type {type_name!r}. {_hint(type_name, types)}")
    if type_name in NEED_SQL:
        raise SpecError(f"{label}: {type_name} needs a database, but suites run on one table in memory. Remove it.")
    kwargs = entry.get("kwargs", {})
    if any(isinstance(value, dict) and "$PARAMETER" in value for value in kwargs.values()):
        raise SpecError(f"{label} ({type_name}) has a $PARAMETER, which is not supported. Write the value.")
    return entry


def _named_columns(type_name: str, kwargs: Mapping[str, Any]) -> list[str]:
    if type_name in ABOUT_COLUMN_NAMES:
        return []
    names = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    column_list = kwargs.get("column_list", [])
    return [*names, *(column_list if isinstance(column_list, list) else [])]


def _condition_columns(label: str, condition: Mapping[str, Any]) -> Iterator[str]:
    """Yield the columns of a row condition; a condition in pandas' own language could run any code."""
    if condition["type"] == "pass_through":
        raise SpecError(
            f"{label} has the condition {condition['pass_through_filter']!r}, which pandas would run as code. Write "
            '{"type": "comparison", "column": {"name": "..."}, "operator": ">", "parameter": 0}.'
        )
    for part in condition.get("conditions", []):
        yield from _condition_columns(label, part)
    if "column" in condition:
        yield condition["column"]["name"]


def _check_columns(label: str, names: Iterable[str], columns: Collection[str]) -> None:
    for name in names:
        if name not in columns:
            raise SpecError(f"{label} names the unknown column {name!r}. {_hint(str(name), columns)}")


def _hint(name: str, known: Collection[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {similar[0]!r}?" if similar else f"Choose one of {', '.join(sorted(known))}."
