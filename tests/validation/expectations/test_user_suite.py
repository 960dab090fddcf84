"""User suites: what a file may contain, and the errors for one that is not valid."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from longbatch.schemas.errors import SpecError
from longbatch.validation.expectations.user_suite import read_user_suite

pytestmark = pytest.mark.slow

COLUMNS = ["user_id", "history.dwell_ms", "step_us"]
BETWEEN = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "history.dwell_ms", "min_value": 0}}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Suppress warnings of Great Expectations, as `run_expectations` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(folder: Path, *expectations: Any) -> list[Any]:
    (folder / "suite.json").write_text(json.dumps({"name": "suite", "expectations": expectations}))
    return read_user_suite(folder / "suite.json", COLUMNS)


def conditional(condition: Any, **kwargs: Any) -> dict[str, Any]:
    return {**BETWEEN, "kwargs": {**BETWEEN["kwargs"], "row_condition": condition, **kwargs}}  # type: ignore[dict-item]


def test_a_suite_written_by_great_expectations_is_read(tmp_path: Path) -> None:
    written = {**BETWEEN, "id": "8d9…", "meta": {"owner": "us"}, "notes": "why", "severity": "warning"}
    (expectation,) = read(tmp_path, written)
    assert (expectation.expectation_type, expectation.column, expectation.min_value) == (
        BETWEEN["type"],
        "history.dwell_ms",
        0,
    )
    assert (expectation.severity.value, expectation.notes, expectation.meta["owner"]) == ("warning", "why", "us")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot read the expectation suite .*suite\.json: No such file .*\. Fix its path in \[expectations\]"),
        ("{", r"suite\.json is not JSON: Expecting property name"),
        (b"\xff", r"suite\.json is not JSON: 'utf-8' codec"),
        ("[]", r'suite\.json is not an expectation suite\. Write \{"name": "\.\.\."'),
        ('{"expectations": {}}', r"suite\.json is not an expectation suite"),
    ],
)
def test_a_file_that_is_not_a_suite_is_an_error_that_names_it(
    tmp_path: Path, text: str | bytes | None, message: str
) -> None:
    path = tmp_path / "suite.json"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SpecError, match=message):
        read_user_suite(path, COLUMNS)


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ("expect", r'suite\.json, expectation 2 is \'expect\'\. Write \{"type"'),
        ({"type": "expect_magic", "kwargs": {}}, r"unknown type 'expect_magic'\. Choose one of "),
        (
            {"type": "expect_column_values_to_be_betwen", "kwargs": {"column": "user_id"}},
            "Did you mean 'expect_column_values_to_be_between'",
        ),
        ({**BETWEEN, "weight": 1}, r"the unknown key 'weight'\. The keys are type, kwargs, severity"),
        (
            {"type": BETWEEN["type"], "kwargs": {"column": "history.dwell"}},
            r"names the unknown column 'history.dwell'\. Did you mean 'history.dwell_ms'",
        ),
        (
            {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["user_id", "zz"]}},
            r"names the unknown column 'zz'\. Choose one of history.dwell_ms, step_us, user_id",
        ),
        (
            {"type": BETWEEN["type"], "kwargs": {}},
            r"\(expect_column_values_to_be_between\) is not valid: (?s:.*)column",
        ),
        ({"type": BETWEEN["type"], "kwargs": {"column": "user_id", "minimum": 1}}, "is not valid: (?s:.*)minimum"),
        ({"type": "unexpected_rows_expectation", "kwargs": {"unexpected_rows_query": "SELECT 1"}}, "needs a database"),
        (
            {"type": BETWEEN["type"], "kwargs": {"column": "user_id", "min_value": {"$PARAMETER": "low"}}},
            r"has a \$PARAMETER, which is not supported\. Write the value",
        ),
        (conditional('user_id > @__import__("os").getpid()'), r"which pandas would run as code\. Write"),
        (conditional("user_id > 0", condition_parser="pandas"), "which pandas would run as code"),
        (
            conditional({"type": "comparison", "column": {"name": "a` > @b > `c"}, "operator": ">", "parameter": 0}),
            "names the unknown column 'a` > @b > `c'",
        ),
        (
            conditional('col("nobody") > 0', condition_parser="great_expectations"),
            "names the unknown column 'nobody'",
        ),
    ],
)
def test_an_invalid_expectation_is_an_error_that_names_it(tmp_path: Path, expectation: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        read(tmp_path, BETWEEN, expectation)
    assert "suite.json, expectation 2" in str(raised.value)


def test_row_conditions_and_names_of_missing_columns_are_allowed(tmp_path: Path) -> None:
    positive = {"type": "comparison", "column": {"name": "user_id"}, "operator": ">", "parameter": 0}
    known = {"type": "nullity", "column": {"name": "step_us"}, "is_null": False}
    expectations = read(
        tmp_path,
        conditional({"type": "and", "conditions": [positive, known]}),
        conditional('col("user_id") > 0', condition_parser="great_expectations"),
        {"type": "expect_column_to_exist", "kwargs": {"column": "not_there"}},
        {"type": "expect_table_columns_to_match_ordered_list", "kwargs": {"column_list": ["not_there"]}},
    )
    assert len(expectations) == 4


def test_the_suite_in_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "suite.json").write_text(shown)
    assert len(read_user_suite(tmp_path / "suite.json", ["history.dwell_ms", "history.action"])) == 2
