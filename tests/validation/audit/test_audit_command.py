"""`longbatch validate` as a user types it: exit codes, JSON, and what it says."""

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


def turned_label(timelines: Rows, requests: Rows) -> None:
    requests[2]["targets"][0]["click"] = 0


def test_a_sound_dataset_ends_with_zero(tmp_path: Path) -> None:
    found = validate(stored(tmp_path, parse_spec(SPEC), LOG))
    assert found.exit_code == 0
    assert (
        "1 blocks checked for structure; 2 users, 5 requests and 6 events of their histories compared" in found.stdout
    )
    assert "no finding" in found.stdout


def test_a_finding_ends_with_one_and_is_in_the_json(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG, turned_label)
    found = validate(dataset, "--users", "0", "--json")
    assert found.exit_code == 1
    (finding,) = json.loads(found.stdout)["findings"]
    assert finding.startswith("shard 0 (requests/00000-test.arrow), block 0: user 1, request 13: targets is")


def test_a_dataset_whose_raw_log_is_gone_is_checked_for_structure_and_says_so(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG, turned_label)
    (tmp_path / "log.parquet").unlink()
    found = validate(dataset)
    assert found.exit_code == 0
    assert "nothing was compared with the raw log: source log: " in found.stderr


def test_a_spec_with_other_paths_and_one_of_another_meaning(tmp_path: Path) -> None:
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
def test_no_dataset_is_an_error_that_says_what_to_do(tmp_path: Path, name: str) -> None:
    found = validate(tmp_path / name)
    assert isinstance(found.exception, DatasetError)
    assert "is not a dataset: it has no snapshots. Build one with `longbatch build`" in str(found.exception)
