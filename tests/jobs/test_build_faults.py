"""Builds that are killed, fill the disk or run at the same time: readers see the previous dataset, or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from longbatch.benchmarks.faults import LOCAL, STORE, kill_often
from longbatch.jobs.build import build
from longbatch.jobs.commit.attempt import attempt
from longbatch.jobs.commit.lease import Lease, RunningAttempt, running_attempts
from longbatch.jobs.vacuum import vacuum
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.snapshot import commit, listed_paths, read_snapshot, snapshot_numbers
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.types import no_progress

LEASE = """
import sys, time
from longbatch.jobs.commit.lease import Lease
from longbatch.schemas.storage.local_store import LocalStore
Lease(LocalStore(sys.argv[1]), sys.argv[2], None)
print("leased", flush=True)
time.sleep(600)
"""


@contextmanager
def running_build(store: LocalStore, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of an attempt."""
    with subprocess.Popen(
        [sys.executable, "-c", LEASE, store.location, name], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "leased\n"
        try:
            yield process
        finally:
            process.kill()


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_kills_at_random_moments_leave_the_previous_dataset_or_none(tmp_path: Path) -> None:
    checks, _ = kill_often({LOCAL: 3, STORE: 2}, 20_000, tmp_path, no_progress)
    assert [check.name for check in checks if not check.holds] == []


LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); "


def test_a_full_disk_leaves_nothing(corrupt_log: Path, tmp_path: Path) -> None:
    """A limit on file sizes makes every larger write fail, in Python and in libraries.

    Without -B Python would also truncate the bytecode that it caches, and every later test would fail to load it.
    """
    code = (
        LIMITED + f"from longbatch.cli.main import main; sys.argv[1:] = ['build', {str(corrupt_log)!r}, 'out']; main()"
    )
    process = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 3, process.stderr
    assert "Nothing was committed" in process.stderr
    assert not (tmp_path / "out").exists()


def test_a_build_starts_in_a_folder_with_files_of_a_killed_one(corrupt_log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    name = "0123456789ab"
    for folder in ("timelines", f".work-{name}"):
        (out / folder).mkdir(parents=True)
    (out / "timelines" / f"00000-{name}.arrow").write_bytes(b"half")
    with running_build(LocalStore(out), name) as killed:
        killed.kill()
        killed.wait()
    build(load_spec(corrupt_log), out)
    assert vacuum(out).files == 1
    assert not (out / f".work-{name}").exists()
    assert files(out) == listed_paths(LocalStore(out), 1)


def test_vacuum_keeps_the_files_of_a_running_attempt(corrupt_log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(load_spec(corrupt_log), out)
    store = LocalStore(out)
    with attempt(store) as running:
        partial_file = out / "timelines" / f"00000-{running.name}.arrow"
        partial_file.touch()
        assert running_attempts(store) == [RunningAttempt(running.name, None)]
        assert (vacuum(out).files, vacuum(out).running) == (0, [running.name])
        assert partial_file.exists()
    assert running_attempts(store) == []
    assert vacuum(out).files == 1
    open_dataset(out)


def test_vacuum_keeps_the_given_number_of_snapshots(corrupt_log: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="it has no snapshots"):
        vacuum(tmp_path / "none")
    build(load_spec(corrupt_log), tmp_path / "out")
    with pytest.raises(SpecError, match="keep is 0, but at least the newest snapshot must be kept"):
        vacuum(tmp_path / "out", keep=0)
    assert vacuum(tmp_path / "out", keep=5).snapshots == []


def test_vacuum_keeps_what_a_running_attempt_reads(corrupt_log: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out", LocalStore(tmp_path / "out")
    build(load_spec(corrupt_log), out)
    first = read_snapshot(store)
    with attempt(store, reads=1):
        commit(store, replace(first, number=2))
        assert vacuum(out).snapshots == []
        assert files(out) >= listed_paths(store, 1)
    assert vacuum(out).snapshots == [1]
    with pytest.raises(DatasetError, match=r"snapshot 1 of .* was removed meanwhile\. Run again"):
        attempt(store, reads=1).__enter__()


def test_vacuum_leaves_all_files_if_an_attempt_began_to_read_a_snapshot_meanwhile(
    corrupt_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, store = tmp_path / "out", LocalStore(tmp_path / "out")
    build(load_spec(corrupt_log), out)
    commit(store, replace(read_snapshot(store), number=2, samples=()))
    samples = {path for path in files(out) if path.startswith("samples/")}
    calls = iter([[], [RunningAttempt("0123456789ab", 1)]])
    with monkeypatch.context() as patched:
        patched.setattr("longbatch.jobs.vacuum.running_attempts", lambda store: next(calls))
        assert vacuum(out).files == 0
    assert files(out) >= samples
    assert vacuum(out).files == len(samples) + 1
    assert files(out) == listed_paths(store, 2)


def test_an_attempt_whose_lease_was_removed_does_not_commit(corrupt_log: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out", LocalStore(tmp_path / "out")
    build(load_spec(corrupt_log), out)
    later = replace(read_snapshot(store), number=2)

    def commit_without_a_lease() -> None:
        with attempt(store) as running:
            store.delete([f".attempts/{running.name}"])
            running.commit(later)

    with pytest.raises(DatasetError, match=r"a vacuum took it for a killed one\. Nothing was committed"):
        commit_without_a_lease()
    assert snapshot_numbers(store) == [1]


def test_a_lease_of_another_machine_ends_with_its_age(
    corrupt_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, store = tmp_path / "out", LocalStore(tmp_path / "out")
    build(load_spec(corrupt_log), out)
    monkeypatch.setattr("longbatch.jobs.commit.lease._machine", lambda: "another machine")
    lease = Lease(store, "0123456789ab", None)
    monkeypatch.undo()
    lease._ended.set()
    assert running_attempts(store) == [RunningAttempt("0123456789ab", None)]
    os.utime(out / ".attempts/0123456789ab", (0, 0))
    assert running_attempts(store) == []
    assert not (out / ".attempts/0123456789ab").exists()
