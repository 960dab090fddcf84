"""Appending increments: the same content as one build, whatever crosses the end of an increment."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from days import DAY, DAYS_SPEC, T, a_log, content, end_of, write

from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.engines import stages
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.forget import forget
from longbatch.jobs.vacuum import vacuum
from longbatch.schemas.errors import DataError, DatasetError, SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.validation.audit.audit import audit


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    (tmp_path / "spec.toml").write_text(DAYS_SPEC)
    return tmp_path / "spec.toml"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buckets", [1, 3])
def test_increments_equal_one_build(spec_file: Path, monkeypatch: pytest.MonkeyPatch, seed: int, buckets: int) -> None:
    log, actions = a_log(seed, days=4)
    write(spec_file.parent, log, actions)
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", -(-(log.height + actions.height) // buckets))
    spec, appended = load_spec(spec_file), spec_file.parent / "appended"
    assert build(spec, appended, until=end_of(1), engine=LocalEngine(1)).counts.pending_requests > 0
    for day in range(2, 6):
        one_build = build(spec, spec_file.parent / f"one-build-{day}", until=end_of(day), engine=LocalEngine(1))
        summary = append(spec, appended, end_of(day), engine=LocalEngine(1))
        assert content(appended) == content(spec_file.parent / f"one-build-{day}")
        for name in ("users", "requests", "targets", "events", "history_events", "pending_requests"):
            assert getattr(summary.counts, name) == getattr(one_build.counts, name), name
        assert (
            summary.counts.stored + summary.counts.beyond_history + summary.counts.after_last_request
            == summary.counts.events
        )
    words = open_dataset(appended).vocabulary().to_pylist()
    assert sorted(map(str, words)) == sorted(
        map(str, open_dataset(spec_file.parent / "one-build-5").vocabulary().to_pylist())
    )


@pytest.mark.parametrize("rows", [10, 10_000])
def test_the_samples_of_increments_have_the_rows_of_each_user_in_order(spec_file: Path, rows: int) -> None:
    log, actions = a_log(3, days=4)
    write(spec_file.parent, log, actions)
    spec, dataset = load_spec(spec_file), spec_file.parent / "appended"
    spec = spec.model_copy(update={"expectations": spec.expectations.model_copy(update={"sample_rows": rows})})
    build(spec, dataset, until=end_of(1))
    for day in range(2, 6):
        append(spec, dataset, end_of(day))
    snapshot = open_dataset(dataset).snapshot
    assert {entry.table for entry in snapshot.samples} == {"events", "impressions", "requests"}
    for entry in snapshot.samples:
        sample = pl.read_parquet(dataset / entry.path)
        assert 0 < sample.height <= rows
        time = "visible_time" if entry.table == "events" else "request_time"
        steps = sample.select(pl.col(time).diff().over("user_id").dt.total_microseconds()).to_series().drop_nulls()
        assert (steps >= 0).all(), entry.table


def test_an_increment_needs_only_its_own_rows(spec_file: Path) -> None:
    log, actions = a_log(7, days=2)
    write(spec_file.parent, log, actions)
    spec, root = load_spec(spec_file), spec_file.parent
    build(spec, root / "one-build", until=end_of(2))
    late = (pl.max_horizontal("time", "arrival") >= T + DAY) | (pl.col("asked") >= T + DAY)
    build(spec, root / "appended", until=end_of(1))
    write(root, log.filter(late), actions.filter(pl.col("time") >= T + DAY))
    append(spec, root / "appended", end_of(2))
    assert content(root / "appended") == content(root / "one-build")


@pytest.mark.slow
def test_appending_twice_changes_nothing_and_older_snapshots_stay_readable(spec_file: Path) -> None:
    write(spec_file.parent, *a_log(1, days=3))
    spec, appended = load_spec(spec_file), spec_file.parent / "appended"
    build(spec, appended, until=end_of(1))
    first = content(appended)
    append(spec, appended, end_of(2))
    second = append(spec, appended, end_of(2))
    assert second.snapshot == 2
    assert content(appended, 1) == first
    both = content(appended)
    assert vacuum(appended).snapshots == [1]
    assert content(appended) == both
    with pytest.raises(DatasetError, match="has no snapshot 1"):
        open_dataset(appended, 1)
    append(spec, appended, end_of(3))


def test_a_failed_append_leaves_the_previous_snapshot(spec_file: Path) -> None:
    write(spec_file.parent, *a_log(1, days=2))
    spec, appended = load_spec(spec_file), spec_file.parent / "appended"
    build(spec, appended, until=end_of(1))
    before, files = content(appended), sorted(appended.rglob("*"))
    (spec_file.parent / "log-1.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        append(spec, appended, end_of(2))
    assert content(appended) == before
    assert sorted(appended.rglob("*")) == files


def test_a_request_id_in_two_increments_is_an_error(spec_file: Path) -> None:
    log, actions = a_log(1, days=2)
    write(spec_file.parent, log, actions)
    spec, appended = load_spec(spec_file), spec_file.parent / "appended"
    build(spec, appended, until=end_of(1))
    old = log.filter(pl.col("shown") & (pl.col("asked") < T + DAY)).head(1)
    write(spec_file.parent, pl.concat([log, old.with_columns(asked=pl.lit(T + DAY + 1, dtype=pl.Int64))]), actions)
    with pytest.raises(DataError, match=r"request \d+ of user \d+ was already appended in an earlier increment"):
        append(spec, appended, end_of(2))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[actions]", "[users]\nmin_events = 2\n[actions]", r"incremental builds: \[users\] counts all events"),
        ('request_id = "request"\n', "", "wrong"),
    ],
)
def test_specs_that_do_not_allow_increments_are_refused(spec_file: Path, old: str, new: str, message: str) -> None:
    write(spec_file.parent, *a_log(1, days=1))
    text = spec_file.read_text()
    if message == "wrong":
        text = text.replace('request_id = "request"\n', "").replace(
            'unit = "s" }\n[requests.labels]', 'unit = "s" }\nsession_gap = "5s"\n[requests.labels]'
        )
        message = "a session can continue"
    else:
        text = text.replace(old, new)
    spec_file.write_text(text)
    with pytest.raises(SpecError, match=message):
        build(load_spec(spec_file), spec_file.parent / "out", until=end_of(1))


def test_append_needs_an_incremental_dataset_a_later_time_and_the_same_fixed_keys(spec_file: Path) -> None:
    write(spec_file.parent, *a_log(1, days=2))
    spec, root = load_spec(spec_file), spec_file.parent
    build(spec, root / "plain")
    with pytest.raises(SpecError, match="was built without --until"):
        append(spec, root / "plain", end_of(1))
    build(spec, root / "out", until=end_of(2))
    with pytest.raises(SpecError, match=r"already contains the log until 2023-.*, which is after 2023-"):
        append(spec, root / "out", end_of(1))
    with pytest.raises(SpecError, match=r"differs from the one of .* in history_length"):
        append(spec.model_copy(update={"history_length": 6}), root / "out", end_of(3))


@pytest.mark.slow
def test_the_audit_passes_for_increments_and_reports_lost_rows(spec_file: Path) -> None:
    write(spec_file.parent, *a_log(1, days=3))
    spec, appended = load_spec(spec_file), spec_file.parent / "appended"
    build(spec, appended, until=end_of(1))
    append(spec, appended, end_of(2))
    append(spec, appended, end_of(3))
    audited = audit(appended, users=None)
    assert (audited.findings, audited.not_compared) == ([], "")
    assert audited.requests_checked == open_dataset(appended).counts.requests
    forget(appended, ["u1"])
    assert any(
        "is in the raw log, but not in the dataset" in finding for finding in audit(appended, users=None).findings
    )
