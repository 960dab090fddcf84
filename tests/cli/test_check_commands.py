"""`longbatch validate` on the command line: exit codes, JSON and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_datasets import LOG, SPEC, Rows, stored
from typer.testing import CliRunner, Result

from longbatch.cli.main import app
from longbatch.schemas.errors import DatasetError, SourceError, SpecError
from longbatch.schemas.spec.build_spec import parse_spec


def validate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, arguments), "--no-expectations"])


def flipped_label(timelines: Rows, requests: Rows) -> None:
    requests[2]["targets"][0]["click"] = 0


def test_a_valid_dataset_exits_with_0(tmp_path: Path) -> None:
    result = validate(stored(tmp_path, parse_spec(SPEC), LOG))
    assert result.exit_code == 0
    assert "1 blocks checked for structure; 2 users, 5 requests and 6 history events compared" in result.stdout
    assert "no findings" in result.stdout


def test_a_finding_exits_with_1_and_is_in_the_json(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG, flipped_label)
    result = validate(dataset, "--users", "0", "--json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert finding.startswith("shard 0 (requests/00000-test.arrow), block 0: user 1, request 13: targets is")


def test_without_the_raw_log_only_the_structure_is_checked_with_a_note(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG, flipped_label)
    (tmp_path / "log.parquet").unlink()
    result = validate(dataset)
    assert result.exit_code == 0
    assert "nothing was compared with the raw logs: source log: " in result.stderr


def test_against_accepts_other_paths_but_not_another_spec(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG)
    (tmp_path / "log.parquet").rename(tmp_path / "moved.parquet")
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.replace("log.parquet", "moved.parquet"))
    assert validate(dataset, "--against", spec).exit_code == 0
    spec.write_text(SPEC.replace("history_length = 2", "history_length = 3"))
    other = validate(dataset, "--against", spec)
    assert isinstance(other.exception, SpecError)
    assert "the spec differs from the one" in str(other.exception)
    spec.write_text(SPEC)
    gone = validate(dataset, "--against", spec)
    assert isinstance(gone.exception, SourceError)
    assert gone.exception.exit_code == 2


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_folder_that_is_not_a_dataset_is_an_error_that_names_the_command_to_build_one(
    tmp_path: Path, name: str
) -> None:
    result = validate(tmp_path / name)
    assert isinstance(result.exception, DatasetError)
    assert "is not a dataset: it has no snapshots. Build one with `longbatch build`" in str(result.exception)
