"""The commands, as a user types them: exit codes, JSON, errors in one line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

SPEC = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "time", unit = "s" }
[requests]
source = "log"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "time", unit = "s" }
labels = { click = "int8" }
"""


def longbatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "longbatch.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    log = pl.DataFrame(
        {
            "user_id": [7, 7, 8],
            "item_id": [1, 2, 3],
            "time": [1_700_000_000, 1_700_000_010, 1_700_000_020],
            "click": [0, 1, 1],
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path / "spec.toml"


def test_build_inspect_validate_and_measure_end_with_zero(spec: Path, tmp_path: Path) -> None:
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


def test_a_preset_builds_from_its_raw_folder_and_its_printed_spec_means_the_same(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.5,964982703\n1,11,2.0,964992703\n")
    built = longbatch("build", "preset:movielens", str(tmp_path), str(tmp_path / "dataset"), "--json")
    assert built.returncode == 0, built.stderr
    (tmp_path / "spec.toml").write_text(longbatch("presets", "movielens").stdout)
    again = longbatch("build", str(tmp_path / "spec.toml"), str(tmp_path / "again"), "--json")
    counts = [json.loads(run.stdout)["counts"] for run in (built, again)]
    assert counts[0] == counts[1]
    assert counts[0]["requests"] == 2


def test_presets_lists_the_public_datasets_and_where_they_come_from() -> None:
    assert "mind           MIND: news" in longbatch("presets").stdout
    what, raw = json.loads(longbatch("presets", "--json").stdout)["presets"]["mind"]
    assert what.startswith("MIND: news")
    assert raw.endswith("from https://msnews.github.io.")


def test_an_output_that_exists_ends_with_one(spec: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    longbatch("build", str(spec), dataset)
    again = longbatch("build", str(spec), dataset)
    assert again.returncode == 1
    assert "error: " in again.stderr
    assert "already holds a dataset; pass --overwrite" in again.stderr


def test_a_faulty_spec_ends_with_two_and_names_the_key(spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace("event_time", "evnt_time"))
    faulty = longbatch("build", str(spec), str(tmp_path / "dataset"))
    assert faulty.returncode == 2
    assert "history.evnt_time: unknown key; did you mean `event_time`?" in faulty.stderr
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "--nope"), "No such option"),
        (("frobnicate",), "No such command"),
        (("build", "spec.toml", "out", "--master", "local[2]"), "--master is for --engine spark"),
        (("build", "spec.toml", "raw", "out"), "usage: longbatch build SPEC OUT; found spec.toml raw out"),
        (("build", "preset:mind", "out"), "usage: longbatch build preset:NAME RAW OUT; found preset:mind out"),
        (("build", "preset:movielense", "raw", "out"), "unknown preset 'movielense'. Did you mean 'movielens'?"),
        (("presets", "kuairnd-1k"), "unknown preset 'kuairnd-1k'. Did you mean 'kuairand-1k'?"),
        (("evaluate", "run", "dataset", "--history-lengths", "ten"), "takes whole numbers from 0 on and commas"),
        (("evaluate", "run", "dataset", "--history-lengths=-4,8"), "takes whole numbers from 0 on and commas"),
    ],
)
def test_wrong_usage_ends_with_two(arguments: tuple[str, ...], message: str) -> None:
    wrong = longbatch(*arguments)
    assert wrong.returncode == 2
    assert message in wrong.stderr


def test_a_finding_ends_with_one(spec: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    longbatch("build", str(spec), str(dataset))
    pl.read_parquet(tmp_path / "log.parquet").with_columns(item_id=pl.lit(99)).write_parquet(tmp_path / "log.parquet")
    audited = longbatch("validate", str(dataset))
    assert audited.returncode == 1
    assert "finding: " in audited.stdout


def test_an_interrupt_ends_with_130_and_leaves_nothing(spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace("log.parquet", "long.csv"))
    (tmp_path / "long.csv").write_text("user_id,item_id,time,click\n" + "7,1,1700000000,0\n" * 3_000_000)
    command = [sys.executable, "-m", "longbatch.cli.main", "build", str(spec), str(tmp_path / "dataset")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as build:
        while not list(tmp_path.glob("dataset/.work-*")):
            assert build.poll() is None, "the build ended before it could be interrupted"
            time.sleep(0.01)
        build.send_signal(signal.SIGINT)
        _, told = build.communicate(timeout=60)
    assert build.returncode == 130
    assert "interrupted: nothing was committed" in told
    assert not (tmp_path / "dataset").exists()


def test_a_missing_package_ends_with_three_and_names_the_extra(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['torch'] = None; from longbatch.cli.main import main; main()"
    lacking = subprocess.run(
        [sys.executable, "-c", hide, "train", str(tmp_path), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert lacking.returncode == 3
    assert 'needs torch: pip install "longbatch[train]"' in lacking.stderr


def test_no_dataset_ends_with_one_and_says_what_to_do(tmp_path: Path) -> None:
    absent = longbatch("inspect", str(tmp_path))
    assert absent.returncode == 1
    assert "is not a dataset: it has no snapshots; build one with `longbatch build`" in absent.stderr


def test_the_help_of_build_shows_complete_specs_that_parse() -> None:
    from longbatch.schemas.spec.build_spec import parse_spec

    text = longbatch("build", "--help").stdout
    blocks = text.split("A spec for ")[1:]
    assert len(blocks) == 3
    for block in blocks:
        lines = [line.strip() for line in block.splitlines()[1:]]
        parse_spec("\n".join(line for line in lines if line.startswith("[") or " = " in line))
