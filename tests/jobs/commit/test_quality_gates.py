"""What stops a build before it commits, and the messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from longbatch.jobs.build import build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.schemas.errors import DataError, SpecError
from longbatch.schemas.spec.build_spec import parse_spec

T = 1_700_000_000
SPEC = """
max_rejected = 0.5
{more}
[sources.log]
path = "{path}"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = {{ column = "time", unit = "s" }}
features = {{ tab = {{ type = "int8", values = [0, 1] }} }}
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = {{ column = "time", unit = "s" }}
{section}
"""


def run(folder: Path, more: str = "", section: str = "", **columns: Any) -> None:
    log = {"user": [1, 1, 2, 2], "item": [1, 2, 3, 4], "time": [T, T + 1, T, T + 1], "tab": [0, 1, 0, 1], **columns}
    pl.DataFrame(log).write_parquet(folder / "log.parquet")
    spec = parse_spec(SPEC.format(path=folder / "log.parquet", more=more, section=section))
    build(spec, folder / "out", engine=LocalEngine(1))


def test_a_threshold_of_one_reason_stops_the_build_with_examples(tmp_path: Path) -> None:
    message = (
        r"source log: 1 of 4 rows \(25\.00%\) were rejected for unknown:tab, "
        r"more than max_rejected_for\.'unknown:tab' = 0\.00%: "
        r"4 rows, 0 filtered, 1 rejected \(unknown:tab 1\)\n"
        r"  unknown:tab: .*log\.parquet, row 2: user = 2, time = 1700000000, item = 3, tab = 7\n"
        r"Fix the log or raise the threshold\. Nothing was committed"
    )
    with pytest.raises(DataError, match=message):
        run(tmp_path, more='max_rejected_for = { "unknown:tab" = 0.0 }', tab=[0, 1, 7, 1])
    assert not (tmp_path / "out").exists()


def test_a_build_below_all_thresholds_commits(tmp_path: Path) -> None:
    run(tmp_path, more='max_rejected_for = { "unknown:tab" = 0.25 }', tab=[0, 1, 7, 1])
    assert (tmp_path / "out" / "snapshots").exists()


def test_a_threshold_of_an_unknown_reason_is_an_error_before_reading(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"max_rejected_for: 'unknown:tabs' is not a reason of this spec\. Did you mean 'unknown:tab'\?"
    ):
        run(tmp_path, more='max_rejected_for = { "unknown:tabs" = 0.0 }')


def test_a_message_has_a_few_examples_of_each_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, tab=[7, 7, 7, 1], item=[None, 2, 3, 4])
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["missing_item", "unknown", "unknown"]


def test_policies_that_leave_out_all_targets_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"The dataset would have no requests: policies left out 4 targets\. Check \[users\]\. Nothing was",
    ):
        run(tmp_path, more="[users]\nmin_events = 3")


DELAYED_LABELS = """[requests.labels]
x = { aggregate = "any", within = "1h" }
[actions]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
"""


def test_label_windows_that_never_close_are_named(tmp_path: Path) -> None:
    message = (
        r"The dataset would have no requests: 4 requests are pending because a label window .*\. "
        r"Set actions\.until, or shorten `within`"
    )
    with pytest.raises(DataError, match=message):
        run(tmp_path, section=DELAYED_LABELS)


def test_an_empty_log_of_actions_is_valid_if_its_end_is_declared(tmp_path: Path) -> None:
    pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64, "time": pl.Int64}).write_parquet(tmp_path / "none.parquet")
    empty_source = f'[sources.none]\npath = "{tmp_path / "none.parquet"}"\n'
    section = DELAYED_LABELS.replace('source = "log"', 'source = "none"\nuntil = 2023-12-01T00:00:00Z')
    run(tmp_path, more=empty_source, section=section)
    assert (tmp_path / "out" / "snapshots").exists()
