"""The examples for schedulers run day after day, can be repeated, and tell bad input from a failing machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow_stub import AirflowException, AirflowFailException, load_dag_file
from child_processes import HANG_SECONDS
from paths import ROOT

from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.format.snapshot import snapshot_numbers
from longbatch.schemas.storage.open_store import open_store

SCHEDULERS = ROOT / "examples" / "schedulers"
DAY_1, DAY_2 = (
    datetime(2024, 2, 20, tzinfo=UTC),
    datetime(2024, 2, 21, tzinfo=UTC),
)  # the ends of the days


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a simulated log, its spec, a short training config, and a command `longbatch`."""
    simulate(tmp_path / "raw", Simulation(users=200, events=60_000))
    spec = (tmp_path / "raw" / "spec.toml").read_text()
    (tmp_path / "spec.toml").write_text(spec.replace('path = "log/', 'path = "raw/log/'))
    (tmp_path / "train.toml").write_text("max_steps = 2\nhistory_length = 50\nbatch_size = 16\n")
    write_program(tmp_path / "longbatch", f'exec "{sys.executable}" -m longbatch "$@"')
    return tmp_path


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def write_program_that_fails(path: Path, code: int) -> None:
    """Replace `longbatch` by a program that counts its calls in the file `calls` and exits with a code."""
    write_program(path, f'echo call >> "{path.with_name("calls")}"; exit {code}')


def run_daily_script(folder: Path, until: str) -> subprocess.CompletedProcess[str]:
    settings = {"LONGBATCH": str(folder / "longbatch"), "LONGBATCH_DIR": str(folder), "UNTIL": until}
    return subprocess.run(
        [str(SCHEDULERS / "daily.sh")],
        env={**os.environ, **settings, "RETRY_SECONDS": "0"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


def exit_codes(metrics: Path) -> dict[str, int]:
    return {path.stem: json.loads(path.read_text())["exit_code"] for path in sorted(metrics.iterdir())}


@pytest.mark.slow
def test_the_script_builds_appends_validates_and_trains_and_can_be_repeated(folder: Path) -> None:
    for until in ("2024-02-20", "2024-02-21", "2024-02-21"):
        run = run_daily_script(folder, until)
        assert run.returncode == 0, run.stderr
    assert snapshot_numbers(open_store(folder / "dataset")) == [1, 2]
    assert len(list((folder / "models").glob("*/checkpoint.pt"))) == 2
    assert exit_codes(folder / "metrics") == {
        **dict.fromkeys(("2024-02-20-build", "2024-02-20-validate", "2024-02-20-train"), 0),
        **dict.fromkeys(("2024-02-21-append", "2024-02-21-validate", "2024-02-21-train"), 0),
    }


@pytest.mark.parametrize(("code", "calls"), [(1, 1), (2, 1), (3, 3)])
def test_the_script_repeats_a_command_only_if_that_can_help(tmp_path: Path, code: int, calls: int) -> None:
    write_program_that_fails(tmp_path / "longbatch", code)
    assert run_daily_script(tmp_path, "2024-02-20").returncode == code
    assert len((tmp_path / "calls").read_text().split()) == calls


def load_dag(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the DAG file with the settings of a folder."""
    paths = {"SPEC": folder / "spec.toml", "LOG": folder / "log", "DATASET": folder / "dataset", "RUNS": folder}
    for name, path in paths.items():
        monkeypatch.setenv(f"LONGBATCH_{name}", str(path))
    monkeypatch.setenv("LONGBATCH", str(folder / "longbatch"))
    return load_dag_file(SCHEDULERS / "airflow_daily.py")


@pytest.mark.slow
def test_the_dag_builds_appends_validates_and_trains_and_any_day_can_be_cleared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "log" / "2024-02-19").mkdir(parents=True)
    (folder / "log" / "2024-02-19" / "_SUCCESS").touch()
    module = load_dag(folder, monkeypatch)
    results: list[dict[str, Any]] = [module.longbatch_daily().run(end) for end in (DAY_1, DAY_2, DAY_1)]
    assert [result["wait_for_log"] for result in results] == [True, False, True]
    assert snapshot_numbers(open_store(folder / "dataset")) == [1, 2]
    assert results[0]["append"] != results[1]["append"]
    assert results[2]["append"] == results[1]["append"]  # the first day was cleared after the second was appended
    assert len(list((folder / "models").glob("*/checkpoint.pt"))) == 2
    assert set(exit_codes(folder / "metrics").values()) == {0}


@pytest.mark.parametrize(
    ("code", "error"), [(1, AirflowFailException), (2, AirflowFailException), (3, AirflowException)]
)
def test_the_dag_retries_only_if_that_can_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    write_program_that_fails(tmp_path / "longbatch", code)
    with pytest.raises(AirflowException, match=f"longbatch build ended with exit code {code}") as raised:
        load_dag(tmp_path, monkeypatch).longbatch_daily().run(DAY_1)
    assert type(raised.value) is error


def test_the_tasks_of_the_dag_depend_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {task.name: task for task in load_dag(tmp_path, monkeypatch).longbatch_daily().tasks}
    assert [task.name for task in tasks["append"].upstream] == ["wait_for_log"]
    assert tasks["validate"].arguments == (tasks["append"],)
    assert tasks["train"].arguments == (tasks["validate"],)
