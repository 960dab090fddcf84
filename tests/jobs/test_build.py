"""Promises of a build: what it commits is complete, and after an error no file is left."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from longbatch.jobs import build as build_module
from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.commit.incremental_state import Increment
from longbatch.jobs.engines import spill as partition
from longbatch.jobs.engines.engine import Stages
from longbatch.jobs.engines.local import LocalEngine
from longbatch.schemas.errors import DataError, DatasetError, LongbatchError, MachineError, SourceError, SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.storage.local_store import _LocalFile
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ProgressCallback

T = 1_700_000_000
SPEC = """
name = "small"
history_length = 3
[sources.log]
path = "log*.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
request_id = "request"
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
labels = { click = "int8" }
"""
LOG = pl.DataFrame(
    {
        "user": [1, 1, 1, 2],
        "item": [11, 12, 13, 21],
        "time": [T, T + 1, T + 1, T],
        "request": [1, 2, 2, 3],
        "click": [0, 1, 0, 1],
    }
)


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    """The spec beside its log, a file of four rows."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "spec.toml").write_text(SPEC)
    LOG.write_parquet(folder / "log1.parquet")
    return folder / "spec.toml"


def alter(spec_file: Path, old: str, new: str) -> BuildSpec:
    text = spec_file.read_text()
    assert old in text
    spec_file.write_text(text.replace(old, new))
    return load_spec(spec_file)


def relog(spec_file: Path, log: pl.DataFrame) -> BuildSpec:
    log.write_parquet(spec_file.parent / "log1.parquet")
    return load_spec(spec_file)


def files(out: Path) -> list[str]:
    """Every file under a folder, and every folder without any."""
    return sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() or not any(path.iterdir())
    )


def items(out: Path) -> list[list[int]]:
    """The items of each request's history."""
    return [
        [event["item_id"] for event in row["history"]]
        for batch in open_dataset(out).scan()
        for row in batch.to_pylist()
    ]


def test_the_summary_describes_the_committed_dataset(spec_file: Path, tmp_path: Path) -> None:
    summary = build(load_spec(spec_file), tmp_path / "out")
    opened = open_dataset(tmp_path / "out")
    assert isinstance(summary, BuildSummary)
    assert (summary.snapshot, summary.fingerprint, summary.shards) == (1, opened.fingerprint, 1)
    assert summary.counts == opened.counts
    assert (summary.counts.requests, summary.counts.targets, summary.counts.stored) == (3, 4, 1)
    shards = sum(shard.timelines.size_bytes + shard.requests.size_bytes for shard in opened.shards)
    assert summary.bytes == shards + sum(entry.size_bytes for entry in opened.snapshot.samples)
    assert summary.as_dict()["row_accounting"]["log"]["accepted"] == 4
    assert items(tmp_path / "out") == [[], [11], []]


def test_folders_created_by_a_failed_build_are_removed(spec_file: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    spec_file.write_text(spec_file.read_text().replace('click = "int8"', 'clack = "int8"'))
    with pytest.raises(SourceError, match="clack"):
        build(load_spec(spec_file), tmp_path / "there" / "a" / "b" / "out")
    assert list((tmp_path / "there").iterdir()) == []


def test_two_builds_of_one_log_have_equal_bytes(spec_file: Path, tmp_path: Path) -> None:
    first, second = (build(load_spec(spec_file), tmp_path / name).fingerprint for name in ("a", "b"))
    assert first == second


def test_progress_of_every_stage_ends_at_its_total(spec_file: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, float, float]] = []
    build(load_spec(spec_file), tmp_path / "out", progress=lambda *step: calls.append(step))
    last = {stage: (done, total) for stage, done, total in calls}
    assert list(last) == ["scan", "request ids", "vocabulary", "shards"]
    assert all(done == total for done, total in last.values())


Change = Callable[[Path], BuildSpec]


def failing(*, log: dict[str, Any] | None = None, spec: tuple[str, str] | None = None) -> Change:
    """A change of the log's columns or of the spec's text."""

    def change(spec_file: Path) -> BuildSpec:
        if log is not None:
            relog(spec_file, LOG.with_columns(**{name: pl.Series(values) for name, values in log.items()}))
        return alter(spec_file, *spec) if spec else load_spec(spec_file)

    return change


FAILURES: list[tuple[Change, type[LongbatchError], str]] = [
    (failing(spec=("log*.parquet", "none.parquet")), SourceError, r"source log: file not found: '.*in/none\.parquet'"),
    (
        failing(spec=("log*.parquet", "none*.parquet")),
        SourceError,
        r"source log: no file matches '.*in/none\*\.parquet'",
    ),
    (
        failing(spec=('click = "int8"', 'liked = "int8"')),
        SourceError,
        r"source log: .*log1\.parquet has no column 'liked'\. Its columns are user, item, time, request, click",
    ),
    (
        failing(log={"click": [[1], [2], [3], [4]]}),
        SourceError,
        r"source log: column 'click' has type List\(Int64\), but one value per row",
    ),
    (
        failing(log={"time": ["a", "b", "c", "d"]}),
        DataError,
        r"source log has no valid row: 4 rows, 0 filtered, 4 rejected \(unparsable:time 4\)",
    ),
    (
        failing(log={"click": [1, None, 1, 1]}),
        DataError,
        r"source log: 1 of 4 rows \(25\.00%\) were rejected, more than max_rejected = 1\.00%: "
        r".*\(missing_label:click 1\)\n"
        r"  missing_label:click: .*log1\.parquet, row 1: "
        r"user = 1, time = 1700000001, item = 12, request = 2, click = None\n"
        r"Fix the log or raise the threshold\. Nothing was committed",
    ),
    (failing(log={"request": [1, 2, 2, 1]}), DataError, r"2 of 4 rows .*\(conflicting_request 2\)"),
    (failing(log={"user": [None, None, None, None]}), DataError, r"source log has no valid row: .*missing_user 4"),
    (
        failing(spec=('click = "int8" }', 'click = "int8" }\nwhere = "item > 99"')),
        DataError,
        r"The dataset would have no requests: not one row is a target\. Check requests\.where",
    ),
    (
        failing(spec=('"request"\n[requests]', '"request"\nwhere = "item > 99"\n[requests]\nwhere = "item > 99"')),
        DataError,
        r"source log has no valid row: 4 rows, 4 filtered, 0 rejected\nNothing was committed",
    ),
    (
        failing(spec=('click = "int8" }', 'click = "int8" }\nwhere = "nothing > 99"')),
        SourceError,
        r"has no column 'nothing'",
    ),
    (
        failing(spec=('click = "int8" }', 'click = "int8" }\nwhere = "item >"')),
        SpecError,
        r"requests\.where is not an expression",
    ),
    (
        failing(spec=('path = "log*.parquet"', 'path = "log"\nformat = "table"')),
        SourceError,
        r"Build with --engine spark",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), FAILURES)
def test_a_failed_build_names_the_cause_and_leaves_nothing(
    spec_file: Path, tmp_path: Path, change: Change, error: type[LongbatchError], message: str
) -> None:
    spec = change(spec_file)
    with pytest.raises(error, match=message):
        build(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        build(spec, tmp_path / "empty")
    assert files(tmp_path / "empty") == [], "an empty folder stays, so that the build can be repeated"


def test_a_spec_with_an_unknown_key_builds_nothing(spec_file: Path) -> None:
    with pytest.raises(SpecError, match=r"history\.were: unknown key; did you mean `where`"):
        alter(spec_file, "[history]", "[history]\nwere = 'x'")


def test_rejects_below_the_threshold_are_quarantined_with_their_columns(spec_file: Path, tmp_path: Path) -> None:
    relog(spec_file, LOG.with_columns(click=pl.Series([1, None, 1, 1])))
    summary = build(alter(spec_file, "history_length", "max_rejected = 0.5\nhistory_length"), tmp_path / "out")
    (entry,) = open_dataset(tmp_path / "out").snapshot.quarantine
    (row,) = pl.read_parquet(tmp_path / "out" / entry.path).to_dicts()
    assert row == {
        "user": 1,
        "item": 12,
        "time": T + 1,
        "request": 2,
        "click": None,
        "_reasons": ["missing_label:click"],
        "_source_file": str(spec_file.parent / "log1.parquet"),
        "_source_row": 1,
    }
    assert entry.rows == summary.row_accounting["log"].rejected == 1


def test_conflicting_requests_are_quarantined_with_their_columns(spec_file: Path, tmp_path: Path) -> None:
    """Request 1 is of users 1 and 2, in two files; request 2 is fine."""
    LOG[3:].with_columns(request=pl.lit(1, dtype=pl.Int64)).write_parquet(spec_file.parent / "log2.parquet")
    relog(spec_file, LOG[:3])
    build(alter(spec_file, "history_length", "max_rejected = 0.5\nhistory_length"), tmp_path / "out")
    opened = open_dataset(tmp_path / "out")
    rows = pl.concat([pl.read_parquet(tmp_path / "out" / entry.path) for entry in opened.snapshot.quarantine])
    actual = rows.select(
        "user", "item", "request", "_reasons", "_source_row", pl.col("_source_file").str.tail(12)
    ).rows()
    conflict = ["conflicting_request"]
    assert sorted(actual) == [(1, 11, 1, conflict, 0, "log1.parquet"), (2, 21, 1, conflict, 0, "log2.parquet")]
    accounting = opened.snapshot.row_accounting["log"]
    assert (accounting.rows, accounting.rejected, accounting.accepted) == (4, 2, 2)
    assert accounting.reasons == {"conflicting_request": 2}


def test_an_existing_dataset_is_only_replaced_with_overwrite(spec_file: Path, tmp_path: Path) -> None:
    build(load_spec(spec_file), tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(
        DatasetError, match=r"out already contains a dataset\. Pass --overwrite to replace it after a success"
    ):
        build(load_spec(spec_file), tmp_path / "out")
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("entry_type", ["file", "folder"])
def test_an_output_that_is_not_a_dataset_is_not_changed(spec_file: Path, tmp_path: Path, entry_type: str) -> None:
    out = tmp_path / "out"
    if entry_type == "folder":
        out.mkdir()
    (out / "other.txt" if entry_type == "folder" else out).write_text("other")
    for overwrite in (False, True):
        with pytest.raises(
            DatasetError, match=r"out exists and is not a dataset\. Choose another output folder, or remove it"
        ):
            build(load_spec(spec_file), out, overwrite=overwrite)
    assert (out / "other.txt" if entry_type == "folder" else out).read_text() == "other"


def test_overwrite_replaces_every_file_after_the_commit(spec_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(load_spec(spec_file), out)
    old = set(files(out))
    later = relog(spec_file, LOG.with_columns(item=pl.col("item") + 100))
    assert build(later, out, overwrite=True).snapshot == 2
    assert items(out) == [[], [111], []]
    kept = old & set(files(out))
    assert kept <= {"dictionaries", "quarantine", "state", "vocabulary"}, "folders without files"
    assert len(files(out)) == len(old)


def test_overwrite_keeps_the_old_dataset_if_the_build_fails(spec_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(load_spec(spec_file), out)
    before = files(out)
    with pytest.raises(DataError, match="no valid row"):
        build(relog(spec_file, LOG.with_columns(user=None)), out, overwrite=True)
    assert files(out) == before
    assert items(out) == [[], [11], []]


def test_overwrite_of_a_missing_dataset_is_a_build(spec_file: Path, tmp_path: Path) -> None:
    assert build(load_spec(spec_file), tmp_path / "out", overwrite=True).snapshot == 1


def full_disk(*arguments: Any, **named: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def in_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_write_batches", full_disk)


def in_files_of(folder: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The disk is full when a file of a folder is written."""

    class FullDisk:
        closed = False

        def close(self) -> None:
            self.closed = True

        write = flush = full_disk

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        def on_a_full_disk(self: _LocalFile, path: Path, root: Path) -> None:
            real(self, path, root)
            if folder in path.parts:
                self._file.close()
                self._file = FullDisk()  # type: ignore[assignment]

        real = _LocalFile.__init__
        monkeypatch.setattr(_LocalFile, "__init__", on_a_full_disk)

    return patch


def in_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir
    monkeypatch.setattr(
        Path, "mkdir", lambda self, *a, **k: full_disk() if ".work-" in str(self) else real(self, *a, **k)
    )


def in_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: full_disk() if "timelines" in os.readlink(f"/proc/self/fd/{file}") else real(file)
    )


class NeverStarted:
    """An engine that must not be started."""

    def start(self, *arguments: object) -> AbstractContextManager[Stages]:
        raise AssertionError("the place cannot commit, but the engine was started")


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSYS, "needs hard links"), (errno.EROFS, "Choose another folder")]
)
def test_a_place_that_cannot_commit_is_refused_before_any_work(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(MachineError, match=f"cannot write a dataset to .*{os.strerror(number)}.*{advice}"):
        build(load_spec(spec_file), tmp_path / "out", engine=NeverStarted())
    assert not (tmp_path / "out").exists()


FULL_DISKS = [in_partition, in_folders, in_sync, *map(in_files_of, ("requests", "quarantine", "vocabulary", "samples"))]


@pytest.mark.parametrize("where", FULL_DISKS)
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_is_an_error_that_leaves_nothing(
    spec_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Callable[[pytest.MonkeyPatch], None],
    existing: bool,
) -> None:
    out = tmp_path / "out"
    users = pl.Series(["ann", "ann", "ann", None])
    relog(spec_file, LOG.with_columns(user=users))
    alter(spec_file, 'user_id = "user"', 'user_id = { column = "user", type = "string" }')
    spec = alter(spec_file, "history_length", "max_rejected = 0.5\nhistory_length")
    if existing:
        build(spec, out)
    before = files(out) if existing else []
    with monkeypatch.context() as patched:
        where(patched)
        with pytest.raises(
            MachineError, match=r"cannot write .*: No space left on device. Free space there and run again"
        ):
            build(spec, out, overwrite=existing)
    assert (files(out) if existing else out.exists()) == (before if existing else False)


@pytest.mark.parametrize("stage", ["scan", "request ids", "vocabulary", "shards"])
def test_an_interrupted_build_leaves_nothing(spec_file: Path, tmp_path: Path, stage: str) -> None:
    def interrupt(now: str, done: float, total: float) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(load_spec(spec_file), tmp_path / "out", progress=interrupt)
    assert not (tmp_path / "out").exists()


class WaitingEngine:
    """The local engine, which waits for another build to finish its stages before either commits."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    @contextmanager
    def start(
        self, spec: BuildSpec, store: Store, attempt: str, increment: Increment | None, progress: ProgressCallback
    ) -> Iterator[Stages]:
        with LocalEngine(1).start(spec, store, attempt, increment, progress) as started:
            yield started
        self.barrier.wait(60)


@pytest.mark.parametrize("existing", [False, True])
def test_one_of_two_simultaneous_builds_fails(
    spec_file: Path, tmp_path: Path, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, spec = tmp_path / "out", load_spec(spec_file)
    if existing:
        build(spec, out)
    checked = threading.Barrier(2)
    real = build_module._check_output

    def check_together(store: Store, overwrite: bool) -> list[int]:
        existing_snapshots = real(store, overwrite)
        checked.wait(60)
        return existing_snapshots

    monkeypatch.setattr(build_module, "_check_output", check_together)
    barrier, results = threading.Barrier(2), list[BuildSummary | LongbatchError]()

    def run() -> None:
        try:
            results.append(build(spec, out, engine=WaitingEngine(barrier), overwrite=existing))
        except LongbatchError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lost,) = [result for result in results if isinstance(result, LongbatchError)]
    (won,) = [result for result in results if isinstance(result, BuildSummary)]
    assert isinstance(lost, DatasetError | MachineError)
    assert "another build committed first. Nothing of this build is visible" in str(lost)
    assert open_dataset(out).fingerprint == won.fingerprint
    assert items(out) == [[], [11], []]
    assert len([name for name in files(out) if name.endswith(".arrow")]) == 3, "two tables and the list of them"


def test_string_ids_can_be_read_back(spec_file: Path, tmp_path: Path) -> None:
    relog(spec_file, LOG.with_columns(user=pl.Series(["ann", "ann", "ann", "bob"])))
    build(alter(spec_file, 'user_id = "user"', 'user_id = { column = "user", type = "string" }'), tmp_path / "out")
    words = open_dataset(tmp_path / "out").vocabulary()
    assert sorted(map(str, words["string"].to_pylist())) == ["ann", "bob"]


def test_collisions_of_ids_are_counted(spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user string hashes to 7 here."""
    monkeypatch.setattr(
        "longbatch.pipelines.canonicalize.hash_string", lambda strings: pl.Series(strings.name, [7] * len(strings))
    )
    relog(spec_file, LOG.with_columns(user=pl.Series(["ann", "ann", "ann", "bob"])))
    alter(spec_file, 'user_id = "user"', 'user_id = { column = "user", type = "string" }')
    assert build(load_spec(spec_file), tmp_path / "out").collisions == 1
    assert open_dataset(tmp_path / "out").snapshot.collisions == 1
