"""savings.json: written, read back, and refused if it is not what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longbatch.jobs.savings.results import SAVINGS_VERSION, Savings, read_savings, write_savings
from longbatch.schemas.errors import SpecError


def test_the_results_are_read_back_as_they_were_written(savings: Savings, tmp_path: Path) -> None:
    write_savings(savings, tmp_path / "savings.json")
    assert read_savings(tmp_path / "savings.json") == savings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*savings\.json: No such file or directory\. Create it with `longbatch measure`"),
        ("{", r"savings\.json is not a savings\.json\. Create one"),
        ("[1]", r"savings\.json is not a savings\.json\. Create one"),
        ("{}", r"savings\.json is not a savings\.json\. Create one"),
        (
            json.dumps({"version": 1}),
            rf"savings\.json has version 1, this longbatch reads version {SAVINGS_VERSION}\. Measure again",
        ),
    ],
)
def test_a_file_that_is_not_a_savings_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "savings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SpecError, match=message):
        read_savings(path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("rates",), None, r"is damaged: rates: .*\. Measure again"),
        (("rates", "log_rows"), float("nan"), r"is damaged: rates.log_rows: Input should be a finite number"),
        (("rates", "log_rows"), "many", r"is damaged: rates.log_rows: Input should be a valid number"),
        (("rates", "event_disk_bytes"), -1.0, r"is damaged: rates.event_disk_bytes: .* greater than or equal to 0"),
        (("rates", "copied_bytes_per_second"), 0, r"rates.copied_bytes_per_second: .* greater than 0"),
        (("dataset", "requests"), 0, r"dataset.requests: .* greater than 0"),
        (
            ("layouts",),
            [],
            r"is damaged: no Parquet zstd size for sample_level_by_user, request_level_by_user\. Measure again",
        ),
    ],
)
def test_a_damaged_savings_file_is_refused_and_the_value_is_named(
    savings: Savings, tmp_path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    document = savings.as_dict()
    parent = document
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = value
    (tmp_path / "savings.json").write_text(json.dumps(document))
    with pytest.raises(SpecError, match=message):
        read_savings(tmp_path / "savings.json")
