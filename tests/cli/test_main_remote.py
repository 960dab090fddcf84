"""The command line with URLs in place of paths, on a local S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_command as longbatch

from longbatch.benchmarks.object_servers import SECRET, Bucket
from longbatch.schemas.storage.open_store import open_store


@pytest.fixture
def root(s3: Bucket, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL with the log and the spec of three rows; nothing is left on this machine."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = f"{s3.url}/{tmp_path.name}"
    for path in (spec, tmp_path / "log.parquet"):
        open_store(url).write(path.name, path.read_bytes())
        path.unlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return url


def succeed(*command: str) -> str:
    """Run a command that succeeds, and return what it prints."""
    run = longbatch(*command)
    assert run.returncode == 0, run.stderr
    return run.stdout


def names(url: str) -> list[str]:
    return sorted(file.path for file in open_store(url).list_files())


def test_spec_users_savings_and_metrics_can_be_urls(root: str, tmp_path: Path) -> None:
    succeed("--metrics", f"{root}/metrics.json", "build", f"{root}/spec.toml", f"{root}/dataset")
    metrics = json.loads(open_store(root).read("metrics.json").to_pybytes())
    assert (metrics["exit_code"], metrics["dataset"]["counts"]["users"]) == (0, 2)
    assert metrics["sources"] == {"log": [f"{root}/log.parquet"]}
    assert "compared" in succeed("validate", f"{root}/dataset", "--against", f"{root}/spec.toml", "--no-expectations")
    assert f"open {root}/savings/savings.html" in succeed("measure", f"{root}/dataset", f"{root}/savings")
    assert {"savings.html", "savings.json"} <= set(names(f"{root}/savings"))
    assert "stored events" in succeed("plan", f"{root}/savings/savings.json")
    open_store(root).write("users.txt", b"8\n")
    succeed("forget", f"{root}/dataset", "--users", f"{root}/users.txt")
    assert '"users": 1' in succeed("inspect", f"{root}/dataset", "--json")
    assert list(Path.cwd().iterdir()) == []


def test_measuring_again_replaces_the_report_and_keeps_other_files(root: str) -> None:
    succeed("build", f"{root}/spec.toml", f"{root}/dataset")
    open_store(f"{root}/savings").write("notes.txt", b"mine")
    for seed in ("0", "1"):
        succeed("measure", f"{root}/dataset", f"{root}/savings", "--seed", seed)
    assert "notes.txt" in names(f"{root}/savings")
    assert '"seed": 1' in open_store(f"{root}/savings").read("savings.json").to_pybytes().decode()


@pytest.mark.parametrize(
    "command",
    [
        ["build", "spec.toml", "s3:/bucket/dataset"],
        ["inspect", "s3:/bucket/dataset"],
        ["train", "dataset", "s3:/bucket/run"],
        ["evaluate", "s3:/bucket/run", "dataset"],
        ["plan", "s3:/bucket/savings.json"],
        ["append", "s3:/bucket/spec.toml", "dataset", "--until", "2026-03-02"],
        ["--metrics", "s3:/bucket/metrics.json", "presets"],
    ],
)
def test_a_url_with_one_slash_is_an_error_that_says_what_to_write(
    spec: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(spec.parent)
    longbatch("build", "spec.toml", "dataset")
    run = longbatch(*command)
    assert run.returncode == 2
    assert "a URL has two slashes after the scheme. Write s3://bucket/" in run.stderr
    assert not (spec.parent / "s3:").exists()


def test_missing_files_of_a_store_are_named(root: str) -> None:
    missing = f"{root}/missing"
    assert f"cannot read the spec {missing}: No such file" in longbatch("build", missing, f"{root}/new").stderr
    assert f"cannot read {missing}: No such file or directory. Create it with" in longbatch("plan", missing).stderr
    users = longbatch("forget", f"{root}/dataset", "--users", missing)
    assert f"cannot read the users to forget from {missing}" in users.stderr


def test_openlineage_events_cannot_be_appended_to_a_url(root: str) -> None:
    run = longbatch("--openlineage", f"{root}/events.jsonl", "presets")
    assert run.returncode == 2
    assert "events are appended to a file, which an object store cannot do" in run.stderr


@pytest.mark.slow
def test_a_build_takes_credentials_from_the_environment(bucket: Bucket, spec: Path, tmp_path: Path) -> None:
    url, environment = f"{bucket.url}/{tmp_path.name}", {**os.environ, **bucket.environment}
    for command in (["build", str(spec), url], ["inspect", url, "--content-hash", "--json"]):
        run = subprocess.run(
            [sys.executable, "-m", "longbatch", *command], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert SECRET not in run.stdout + run.stderr
    succeed("build", str(spec), str(tmp_path / "dataset"))
    local = json.loads(succeed("inspect", str(tmp_path / "dataset"), "--content-hash", "--json"))
    assert json.loads(run.stdout)["content_hash"] == local["content_hash"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "log.parquet", "spec.toml"]
