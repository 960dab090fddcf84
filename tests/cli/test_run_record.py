"""The metrics of a run: one schema for every command, also if the command fails."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
from child_processes import child_process
from command_line import run_command as longbatch
from paths import ROOT
from three_row_log import SPEC

from longbatch.cli.run_facts import without_credentials
from longbatch.schemas.errors import MachineError

KEYS = {
    *("metrics_version", "longbatch_version", "run_id", "command", "started", "seconds", "exit_code", "error"),
    *("stages", "sources", "dataset", "result"),
}


def metrics_of(folder: Path, *command: str) -> dict[str, Any]:
    """Run a command and return its metrics."""
    file = folder / "metrics.json"
    run = longbatch("--metrics", str(file), *command)
    metrics = cast(dict[str, Any], json.loads(file.read_text()))
    assert metrics.keys() == KEYS
    assert metrics["exit_code"] == run.returncode
    assert metrics["command"] == command[0]
    return metrics


def test_a_build_has_stages_sources_dataset_and_result(spec: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    metrics = metrics_of(tmp_path, "build", str(spec), dataset)
    assert metrics["error"] is None
    assert metrics["seconds"] >= sum(stage["seconds"] for stage in metrics["stages"])
    assert [stage["name"] for stage in metrics["stages"]] == ["scan", "request ids", "vocabulary", "shards"]
    assert metrics["stages"][0]["rows"] == 3
    assert metrics["sources"] == {"log": [str(tmp_path / "log.parquet")]}
    assert metrics["dataset"]["path"] == dataset
    assert metrics["dataset"]["snapshot"] == 1
    assert metrics["dataset"]["until"] is None
    assert metrics["dataset"]["counts"]["requests"] == 3
    assert metrics["dataset"]["row_accounting"]["log"]["accepted"] == 3
    assert metrics["dataset"]["fingerprint"] == metrics["result"]["fingerprint"]


def test_an_append_reports_the_rows_of_its_run_and_of_the_dataset(spec: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    metrics_of(tmp_path, "build", str(spec), dataset, "--until", "2023-11-14T22:13:25Z")
    metrics = metrics_of(tmp_path, "append", str(spec), dataset, "--until", "2023-11-15")
    assert metrics["dataset"]["snapshot"] == 2
    assert metrics["dataset"]["until"] == "2023-11-15T00:00:00+00:00"
    assert metrics["dataset"]["row_accounting"]["log"]["accepted"] == 3
    assert metrics["result"]["run_row_accounting"]["log"]["accepted"] == 2
    again = metrics_of(tmp_path, "append", str(spec), dataset, "--until", "2023-11-15")
    assert again["dataset"]["snapshot"] == 2
    assert again["result"]["run_row_accounting"] == {}


@pytest.mark.slow
def test_every_command_that_changes_or_reads_a_dataset_has_its_stages(spec: Path, tmp_path: Path) -> None:
    dataset, users = str(tmp_path / "dataset"), tmp_path / "users.txt"
    users.write_text("8\n")
    metrics_of(tmp_path, "build", str(spec), dataset)
    commands = {
        "validate": (dataset,),
        "expand": (dataset, str(tmp_path / "samples"), "--check"),
        "measure": (dataset, str(tmp_path / "savings"), "--budget", "1"),
        "forget": (dataset, "--users", str(users)),
        "vacuum": (dataset,),
    }
    stages = {}
    for command, arguments in commands.items():
        metrics = metrics_of(tmp_path, command, *arguments)
        assert metrics["exit_code"] == 0, metrics["error"]
        assert metrics["dataset"]["counts"]["users"] == (1 if command in ("forget", "vacuum") else 2)
        stages[command] = [stage["name"] for stage in metrics["stages"]]
    assert stages["measure"][0] == "survey"
    assert len(stages.pop("measure")) > 3
    assert stages == {
        "validate": ["audit", "expectations"],
        "expand": ["expand", "compare"],
        "forget": ["rewrite shards", "rewrite other files"],
        "vacuum": ["remove files"],
    }


def test_a_failed_build_has_the_class_and_message_of_its_error_and_the_stages_so_far(
    spec: Path, tmp_path: Path
) -> None:
    pl.DataFrame({"user_id": [None], "item_id": [1], "time": [1], "click": [0]}).write_parquet(tmp_path / "log.parquet")
    metrics = metrics_of(tmp_path, "build", str(spec), str(tmp_path / "dataset"))
    assert metrics["exit_code"] == 1
    assert metrics["error"]["class"] == "DataError"
    assert "source log has no valid row" in metrics["error"]["message"]
    assert metrics["stages"][0] == {**metrics["stages"][0], "name": "scan", "rows": 1, "failed": False}
    assert metrics["dataset"] is None
    assert metrics["result"] is None


def test_a_stage_that_fails_is_marked(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MachineError("the disk is full")

    monkeypatch.setattr("longbatch.jobs.engines.local.build_shard", fail)
    metrics = metrics_of(tmp_path, "build", str(spec), str(tmp_path / "dataset"))
    assert metrics["exit_code"] == 3
    assert metrics["error"] == {"class": "MachineError", "message": "the disk is full"}
    assert [stage["name"] for stage in metrics["stages"] if stage["failed"]] == ["shards"]


def test_a_validation_that_fails_has_its_findings_and_no_error(spec: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    longbatch("build", str(spec), str(dataset))
    next((dataset / "requests").iterdir()).write_bytes(b"damaged")
    metrics = metrics_of(tmp_path, "validate", str(dataset), "--no-expectations")
    assert metrics["exit_code"] == 1
    assert metrics["error"] is None
    assert metrics["result"]["findings"]


def test_an_argument_that_cannot_be_parsed_is_recorded(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, "build", "--nope")
    assert metrics["exit_code"] == 2
    assert metrics["error"]["class"] == "NoSuchOption"


def test_an_error_of_the_program_is_recorded_before_its_traceback(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("longbatch.jobs.build.build", fail)
    with pytest.raises(ZeroDivisionError):
        longbatch("--metrics", str(tmp_path / "m.json"), "build", str(spec), str(tmp_path / "dataset"))
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["exit_code"], metrics["error"]) == (1, {"class": "ZeroDivisionError", "message": "a bug"})


@pytest.mark.slow
def test_an_interrupted_run_has_exit_code_130(spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace("log.parquet", "long.csv"))
    (tmp_path / "long.csv").write_text("user_id,item_id,time,click\n" + "7,1,1700000000,0\n" * 3_000_000)
    files = ["--metrics", str(tmp_path / "m.json"), "--openlineage", str(tmp_path / "events.jsonl")]
    command = [sys.executable, "-m", "longbatch", *files, "build", str(spec), str(tmp_path / "dataset")]
    with child_process(command) as build:
        while not list(tmp_path.glob("dataset/.work-*")):
            assert build.poll() is None, "the build ended before it could be interrupted"
            time.sleep(0.01)
        build.send_signal(signal.SIGINT)
        build.communicate()
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["exit_code"], metrics["dataset"]) == (130, None)
    events = [json.loads(line)["eventType"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events == ["START", "ABORT"]


@pytest.mark.parametrize("option", ["--metrics", "--openlineage"])
def test_a_file_in_a_folder_that_does_not_exist_stops_the_command_before_it_starts(
    spec: Path, tmp_path: Path, option: str
) -> None:
    run = longbatch(option, str(tmp_path / "absent" / "file"), "build", str(spec), str(tmp_path / "dataset"))
    assert run.returncode == 2
    assert re.search(rf"{option} .*: the folder .*absent does not exist. Create it first.", run.stderr)
    assert not (tmp_path / "dataset").exists()


def test_metrics_that_cannot_be_written_exit_with_three(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    run = longbatch("--metrics", str(tmp_path / "metrics"), "build", str(spec), str(tmp_path / "dataset"))
    assert run.returncode == 3
    assert "metrics" in run.stderr.splitlines()[-1]


def test_only_the_first_rank_writes(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    longbatch("--metrics", str(tmp_path / "m.json"), "presets")
    assert not (tmp_path / "m.json").exists()


def test_paths_are_absolute_and_uris_have_no_credentials() -> None:
    assert without_credentials("log/day.csv") == str(Path("log/day.csv").absolute())
    assert without_credentials("s3://key:secret@logs/day.csv?endpoint_override=x") == "s3://logs/day.csv"
    assert without_credentials("abfss://container@account/day.csv") == "abfss://container@account/day.csv"


def test_the_page_documents_every_key() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert documented == KEYS
