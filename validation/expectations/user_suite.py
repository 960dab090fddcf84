"""A user's own expectation suite: a JSON file in Great Expectations' format, read without running anything of it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from longbatch.schemas.errors import SpecError

from .gx_import import great_expectations

READ = ("type", "kwargs", "severity", "description", "notes", "meta")
WRITTEN_BY_GX = ("id", "rendered_content", "success_on_last_run")
# These are about which columns there are: they may name others.
ABOUT_COLUMNS = (
    "expect_column_to_exist",
    "expect_table_columns_to_match_set",
    "expect_table_columns_to_match_ordered_list",
)
NEED_SQL = (
    "unexpected_rows_expectation",
    "expect_query_results_to_match_comparison",
    "expect_table_row_count_to_equal_other_table",
)


def read_own_suite(path: Path, columns: Collection[str]) -> list[Any]:
    """Return the expectations of a suite file, ready to run on a table with `columns`.

    Raises SpecError, naming the file and the expectation, where the file is missing or no suite, or an expectation is
    unknown or not complete, needs a database or a parameter, names a column that is not there, or has a condition
    that would be run as code.
    """
    return [_expectation(path, number, entry, columns) for number, entry in enumerate(_entries(path), start=1)]


def _entries(path: Path) -> list[Any]:
    try:
        suite = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"cannot read the expectation suite {path}: {error.strerror}; mend its path in [expectations]"
        ) from None
    except ValueError as error:
        raise SpecError(f"the expectation suite {path} is not JSON: {error}") from None
    found = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(found, list):
        raise SpecError(
            f"{path} is not an expectation suite; write "
            '{"name": "...", "expectations": [{"type": "expect_...", "kwargs": {...}}]}'
        )
    return found


def _expectation(path: Path, number: int, entry: Any, columns: Collection[str]) -> Any:
    great_expectations()
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    place = f"{path}, expectation {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("kwargs", {}), dict):
        raise SpecError(f'{place} is {entry!r}; write {{"type": "expect_...", "kwargs": {{...}}}}')
    unknown = sorted(set(entry) - {*READ, *WRITTEN_BY_GX})
    if unknown:
        raise SpecError(f"{place} has the unknown key {unknown[0]!r}; the keys are {', '.join(READ)}")
    known, type_name = list_registered_expectation_implementations(), str(entry.get("type"))
    if type_name not in known:
        raise SpecError(
            f"{place} has the type {type_name!r}, which Great Expectations does not know{_near(type_name, known)}"
        )
    if type_name in NEED_SQL:
        raise SpecError(f"{place} ({type_name}) needs a database; here is one table in memory: choose another")
    kwargs = entry.get("kwargs", {})
    if any(isinstance(value, dict) and "$PARAMETER" in value for value in kwargs.values()):
        raise SpecError(f"{place} ({type_name}) has a $PARAMETER, and there are none here; write the value")
    _check_columns(place, _named_columns(type_name, kwargs), columns)
    try:
        config = {**{key: entry[key] for key in READ if key in entry}, "kwargs": dict(kwargs)}
        expectation = ExpectationConfiguration(**config).to_domain_obj()
    except Exception as error:
        raise SpecError(f"{place} ({type_name}) cannot be used: {error}") from None
    condition = getattr(expectation, "row_condition", None)
    if condition is not None:
        _check_columns(place, _condition_columns(place, condition.dict()), columns)
    return expectation


def _named_columns(type_name: str, kwargs: Mapping[str, Any]) -> list[str]:
    if type_name in ABOUT_COLUMNS:
        return []
    named = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    several = kwargs.get("column_list", [])
    return [*named, *(several if isinstance(several, list) else [])]


def _condition_columns(place: str, condition: Mapping[str, Any]) -> Iterator[str]:
    """Yield the columns of a row condition; pandas' own language could run any code, so it is refused."""
    if condition["type"] == "pass_through":
        raise SpecError(
            f"{place} has the condition {condition['pass_through_filter']!r}, which pandas would run as code; write "
            '{"type": "comparison", "column": {"name": "..."}, "operator": ">", "parameter": 0}'
        )
    for part in condition.get("conditions", []):
        yield from _condition_columns(place, part)
    if "column" in condition:
        yield condition["column"]["name"]


def _check_columns(place: str, named: Iterator[str] | list[str], columns: Collection[str]) -> None:
    for name in named:
        if name not in columns:
            raise SpecError(f"{place} names the column {name!r}, which is not there{_near(str(name), columns)}")


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
