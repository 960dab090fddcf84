"""The commands as a user types them: exit codes, JSON, errors in one line, help."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from child_processes import HANG_SECONDS, child_process
from command_line import run_command as longbatch
from paths import ROOT
from three_row_log import SPEC

import longbatch as package
from longbatch.schemas.spec.build_spec import parse_spec

COMMANDS = {
    *("append", "bench", "build", "demo", "evaluate", "expand", "forget", "inspect", "measure", "plan", "presets"),
    *("simulate", "train", "vacuum", "validate"),
}


def new_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; for what only a process of its own shows."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


@pytest.mark.slow
def test_build_inspect_validate_and_measure_exit_with_zero(spec: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    built = longbatch("build", str(spec), dataset, "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["counts"]["requests"] == 3
    inspected = longbatch("inspect", dataset, "--content-hash", "--json")
    assert json.loads(inspected.stdout)["counts"]["targets"] == 3
    request = longbatch("inspect", dataset, "--user", "7")
    assert "item_id=1" in request.stdout
    assert "item_id=2" in request.stdout
    assert json.loads(longbatch("validate", dataset, "--json").stdout)["findings"] == []
    measured = longbatch("measure", dataset, str(tmp_path / "savings"), "--budget", "1")
    assert measured.returncode == 0, measured.stderr
    assert "this dataset" in measured.stdout
    assert (tmp_path / "savings" / "savings.html").exists()


def test_a_dataset_grows_by_a_day_and_forgets_a_user(spec: Path, tmp_path: Path) -> None:
    dataset, users = str(tmp_path / "dataset"), tmp_path / "users.txt"
    users.write_text("8\n")
    assert longbatch("build", str(spec), dataset, "--until", "2023-11-14T22:13:25Z").returncode == 0
    appended = longbatch("append", str(spec), dataset, "--until", "2023-11-15", "--json")
    assert json.loads(appended.stdout)["counts"]["requests"] == 3
    forgotten = longbatch("forget", dataset, "--users", str(users))
    assert forgotten.stdout.startswith("forgot 1 users (1 had requests)")
    assert longbatch("vacuum", dataset).stdout.startswith("removed 2 snapshots")


def test_the_package_file_runs_as_a_script_as_spark_submit_runs_it(spec: Path, tmp_path: Path) -> None:
    script = str(ROOT / "src" / "longbatch" / "__main__.py")
    built = new_process(script, "build", str(spec), str(tmp_path / "dataset"), "--engine", "local")
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith("built ")


def test_a_preset_builds_from_its_raw_folder_as_its_printed_spec_does(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.5,964982703\n1,11,2.0,964992703\n")
    from_preset = longbatch("build", "preset:movielens", str(tmp_path), str(tmp_path / "dataset"), "--json")
    assert from_preset.returncode == 0, from_preset.stderr
    (tmp_path / "spec.toml").write_text(longbatch("presets", "movielens").stdout)
    from_spec = longbatch("build", str(tmp_path / "spec.toml"), str(tmp_path / "same"), "--json")
    counts = [json.loads(run.stdout)["counts"] for run in (from_preset, from_spec)]
    assert counts[0] == counts[1]
    assert counts[0]["requests"] == 2


def test_presets_lists_the_public_datasets_and_their_downloads() -> None:
    assert "mind           MIND: news" in longbatch("presets").stdout
    about, download = json.loads(longbatch("presets", "--json").stdout)["presets"]["mind"]
    assert about.startswith("MIND: news")
    assert download.endswith("from https://msnews.github.io.")


def test_simulate_writes_a_log_with_corrupt_rows(tmp_path: Path) -> None:
    out = tmp_path / "raw"
    done = longbatch("simulate", str(out), "--users", "20", "--events", "20000", "--corrupt", "0.03", "--json")
    report = json.loads(done.stdout)
    assert report["events"] == 20_000
    assert report["rows"] == 20_000 + sum(report["planted"].values())
    again = longbatch("simulate", str(out), "--users", "20", "--events", "20000")
    assert again.returncode == 2
    assert f"error: {out} exists and is not empty" in again.stderr


def test_an_existing_output_exits_with_one(spec: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    longbatch("build", str(spec), dataset)
    again = longbatch("build", str(spec), dataset)
    assert again.returncode == 1
    assert "error: " in again.stderr
    assert "Pass --overwrite" in again.stderr


def test_an_invalid_spec_exits_with_two_and_names_the_key(spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace("event_time", "evnt_time"))
    invalid = longbatch("build", str(spec), str(tmp_path / "dataset"))
    assert invalid.returncode == 2
    assert "history.evnt_time: unknown key" in invalid.stderr
    assert "`event_time`" in invalid.stderr
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "--nope"), "No such option"),
        (("frobnicate",), "No such command"),
        (("--log-level", "LOUD", "presets"), "'LOUD' is not one of"),
        (("build", "spec.toml", "raw", "out"), "usage: longbatch build SPEC OUT; found spec.toml raw out"),
        (("build", "preset:mind", "out"), "usage: longbatch build preset:NAME RAW OUT; found preset:mind out"),
        (("build", "preset:movielense", "raw", "out"), "unknown preset 'movielense'. Did you mean 'movielens'?"),
        (("presets", "kuairnd-1k"), "unknown preset 'kuairnd-1k'. Did you mean 'kuairand-1k'?"),
        (
            ("evaluate", "run", "dataset", "--history-lengths", "ten"),
            "takes integers of 0 or more, separated by commas",
        ),
        (("evaluate", "run", "dataset", "--history-lengths=-4,8"), "takes integers of 0 or more, separated by commas"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...], message: str) -> None:
    wrong = longbatch(*arguments)
    assert wrong.returncode == 2
    assert message in wrong.stderr


def test_a_master_without_the_spark_engine_exits_with_two(spec: Path) -> None:
    wrong = longbatch("build", str(spec), "out", "--master", "local[2]")
    assert wrong.returncode == 2
    assert "--master needs --engine spark" in wrong.stderr


def test_a_time_that_is_not_iso_exits_with_two(spec: Path) -> None:
    wrong = longbatch("build", str(spec), "out", "--until", "yesterday")
    assert wrong.returncode == 2
    assert "'yesterday' is not an ISO time" in wrong.stderr


def test_a_finding_exits_with_one(spec: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    longbatch("build", str(spec), str(dataset))
    pl.read_parquet(tmp_path / "log.parquet").with_columns(item_id=pl.lit(99)).write_parquet(tmp_path / "log.parquet")
    audited = longbatch("validate", str(dataset), "--no-expectations")
    assert audited.returncode == 1
    assert "finding: " in audited.stdout


@pytest.mark.slow
def test_an_interrupt_exits_with_130_and_leaves_nothing(spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace("log.parquet", "long.csv"))
    (tmp_path / "long.csv").write_text("user_id,item_id,time,click\n" + "7,1,1700000000,0\n" * 3_000_000)
    command = [sys.executable, "-m", "longbatch", "build", str(spec), str(tmp_path / "dataset")]
    with child_process(command) as build:
        while not list(tmp_path.glob("dataset/.work-*")):
            assert build.poll() is None, "the build ended before it could be interrupted"
            time.sleep(0.01)
        build.send_signal(signal.SIGINT)
        _, errors = build.communicate()
    assert build.returncode == 130, errors
    assert "interrupted: nothing was committed" in errors
    assert not (tmp_path / "dataset").exists()


def test_a_missing_package_exits_with_three_and_names_the_extra(tmp_path: Path) -> None:
    hide_torch = "import sys; sys.modules['torch'] = None; from longbatch.cli.main import main; main()"
    lacking = new_process("-c", hide_torch, "train", str(tmp_path), str(tmp_path / "run"))
    assert lacking.returncode == 3
    assert 'needs torch: pip install "longbatch[train]"' in lacking.stderr


def test_a_folder_without_a_dataset_exits_with_one_and_names_the_command(tmp_path: Path) -> None:
    absent = longbatch("inspect", str(tmp_path))
    assert absent.returncode == 1
    assert "is not a dataset" in absent.stderr
    assert "longbatch build" in absent.stderr


def test_the_version_is_printed() -> None:
    assert longbatch("--version").stdout == f"longbatch {package.__version__}\n"


def test_the_module_prints_and_exits_as_the_command_does(tmp_path: Path) -> None:
    for arguments in (("--version",), ("inspect", str(tmp_path)), ("build", "--nope")):
        process, same = new_process("-m", "longbatch", *arguments), longbatch(*arguments)
        assert (process.returncode, process.stdout, process.stderr) == (same.returncode, same.stdout, same.stderr)


def test_quiet_hides_progress_and_prints_the_result(spec: Path, tmp_path: Path) -> None:
    quiet = longbatch("--quiet", "build", str(spec), str(tmp_path / "dataset"))
    assert quiet.stderr == ""
    assert quiet.stdout.startswith("built ")


def test_without_a_terminal_progress_is_logged(spec: Path, tmp_path: Path) -> None:
    logged = longbatch("build", str(spec), str(tmp_path / "dataset"), "--json")
    lines = logged.stderr.splitlines()
    assert lines
    assert all(" INFO longbatch." in line for line in lines)
    assert json.loads(logged.stdout)["snapshot"] == 1


def test_the_log_level_decides_what_is_logged(spec: Path, tmp_path: Path) -> None:
    warnings = longbatch("--log-level", "warning", "build", str(spec), str(tmp_path / "dataset"))
    assert warnings.stderr == ""


def test_the_help_lists_every_command_and_exit_code() -> None:
    overview = longbatch("--help").stdout
    assert "130  interrupted; nothing was committed" in overview
    listed = overview.partition("Commands:")[2].partition("Exit codes:")[0]
    assert set(re.findall(r"^  (\w+) ", listed, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command_has_an_example(command: str) -> None:
    shown = longbatch(command, "--help").stdout
    assert f"Usage: longbatch {command} " in shown
    examples = shown.partition("Examples:")[2]
    assert f"longbatch {command} " in examples or f"longbatch {command}\n" in examples


def test_the_help_of_build_shows_complete_specs_that_parse() -> None:
    shown = longbatch("build", "--help").stdout
    blocks = shown.split("A spec for ")[1:]
    assert len(blocks) == 3
    for block in blocks:
        lines = [line.strip() for line in block.splitlines()[1:]]
        parse_spec("\n".join(line for line in lines if line.startswith("[") or " = " in line))
