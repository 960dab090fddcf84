"""A user's own suite: what a file may hold, and what is said of one that cannot be used."""

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
from longbatch.validation.expectations.user_suite import read_own_suite

COLUMNS = ["user_id", "history.dwell_ms", "step_us"]
BETWEEN = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "history.dwell_ms", "min_value": 0}}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """`run_expectations` keeps the warnings of Great Expectations to itself; here it is not around."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(folder: Path, *expectations: Any) -> list[Any]:
    (folder / "mine.json").write_text(json.dumps({"name": "mine", "expectations": expectations}))
    return read_own_suite(folder / "mine.json", COLUMNS)


def conditional(condition: Any, **kwargs: Any) -> dict[str, Any]:
    return {**BETWEEN, "kwargs": {**BETWEEN["kwargs"], "row_condition": condition, **kwargs}}  # type: ignore[dict-item]


def test_a_suite_is_read_as_great_expectations_writes_it(tmp_path: Path) -> None:
    written = {**BETWEEN, "id": "8d9…", "meta": {"owner": "us"}, "notes": "why", "severity": "warning"}
    (found,) = read(tmp_path, written)
    assert (found.expectation_type, found.column, found.min_value) == (BETWEEN["type"], "history.dwell_ms", 0)
    assert (found.severity.value, found.notes, found.meta["owner"]) == ("warning", "why", "us")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot read the expectation suite .*mine\.json: No such file .*\[expectations\]"),
        ("{", r"mine\.json is not JSON: Expecting property name"),
        (b"\xff", r"mine\.json is not JSON: 'utf-8' codec"),
        ("[]", r'mine\.json is not an expectation suite; write \{"name": "\.\.\."'),
        ('{"expectations": {}}', r"mine\.json is not an expectation suite"),
    ],
)
def test_a_file_that_is_no_suite_is_named(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SpecError, match=message):
        read_own_suite(path, COLUMNS)


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ("expect", r'mine\.json, expectation 2 is \'expect\'; write \{"type"'),
        ({"type": "expect_magic", "kwargs": {}}, "the type 'expect_magic', which Great Expectations does not know"),
        (
            {"type": "expect_column_values_to_be_betwen", "kwargs": {"column": "user_id"}},
            "did you mean 'expect_column_values_to_be_between'",
        ),
        ({**BETWEEN, "weight": 1}, "the unknown key 'weight'; the keys are type, kwargs, severity"),
        (
            {"type": BETWEEN["type"], "kwargs": {"column": "history.dwell"}},
            r"names the column 'history.dwell', which is not there; did you mean 'history.dwell_ms'",
        ),
        (
            {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["user_id", "zz"]}},
            "names the column 'zz', which is not there; there are history.dwell_ms, step_us, user_id",
        ),
        (
            {"type": BETWEEN["type"], "kwargs": {}},
            r"\(expect_column_values_to_be_between\) cannot be used: (?s:.*)column",
        ),
        ({"type": BETWEEN["type"], "kwargs": {"column": "user_id", "minimum": 1}}, "cannot be used: (?s:.*)minimum"),
        ({"type": "unexpected_rows_expectation", "kwargs": {"unexpected_rows_query": "SELECT 1"}}, "needs a database"),
        (
            {"type": BETWEEN["type"], "kwargs": {"column": "user_id", "min_value": {"$PARAMETER": "low"}}},
            r"has a \$PARAMETER, and there are none here; write the value",
        ),
        (conditional('user_id > @__import__("os").getpid()'), "which pandas would run as code; write"),
        (conditional("user_id > 0", condition_parser="pandas"), "which pandas would run as code"),
        (
            conditional({"type": "comparison", "column": {"name": "a` > @b > `c"}, "operator": ">", "parameter": 0}),
            "names the column 'a` > @b > `c', which is not there",
        ),
        (
            conditional('col("nobody") > 0', condition_parser="great_expectations"),
            "names the column 'nobody', which is not there",
        ),
    ],
)
def test_an_expectation_that_cannot_be_used_is_named(tmp_path: Path, expectation: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        read(tmp_path, BETWEEN, expectation)
    assert "mine.json, expectation 2" in str(raised.value)


def test_conditions_of_great_expectations_and_names_of_missing_columns_are_allowed(tmp_path: Path) -> None:
    positive = {"type": "comparison", "column": {"name": "user_id"}, "operator": ">", "parameter": 0}
    known = {"type": "nullity", "column": {"name": "step_us"}, "is_null": False}
    found = read(
        tmp_path,
        conditional({"type": "and", "conditions": [positive, known]}),
        conditional('col("user_id") > 0', condition_parser="great_expectations"),
        {"type": "expect_column_to_exist", "kwargs": {"column": "not_there"}},
        {"type": "expect_table_columns_to_match_ordered_list", "kwargs": {"column_list": ["not_there"]}},
    )
    assert len(found) == 4


def test_the_suite_in_the_documentation_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.json").write_text(shown)
    assert len(read_own_suite(tmp_path / "mine.json", ["history.dwell_ms", "history.action"])) == 2
