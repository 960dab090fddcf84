"""`longbatch measure`: the report of small datasets, sampling, and errors."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pyarrow as pa
import pytest
from measured_datasets import ROWS, build_rows

from longbatch.jobs.savings import survey as survey_module
from longbatch.jobs.savings.measure import measure
from longbatch.jobs.savings.results import Savings
from longbatch.schemas.errors import MachineError, SpecError
from longbatch.schemas.format.dataset import Dataset


def test_the_report_contains_the_exact_numbers_of_a_small_dataset(measured: tuple[Path, Savings]) -> None:
    out, savings = measured
    assert json.loads((out / "savings.json").read_text()) == savings.as_dict()
    assert [p.name for p in sorted(out.iterdir())] == [
        "savings-disk.png", "savings-memory.png", "savings-read.png", "savings.html", "savings.json",
    ]  # fmt: skip
    # histories: 0, 0, 2, 1, 3 events with 2, 1, 3, 1, 1 targets; five stored events of user 1, one of user 2
    means = savings.means
    assert means.event_bytes == 8 + 8 + 2
    assert means.history_per_request == pytest.approx(6 / 5)
    assert means.history_per_target == pytest.approx((2 * 3 + 1 + 3) / 8)
    assert means.requests_per_event == pytest.approx(6 / 6)
    assert means.targets_per_request == pytest.approx(8 / 5)
    assert savings.layout("sample_level_by_log").copies_per_event == pytest.approx(10 / 6)
    for layout in savings.layouts:
        assert layout.sample.share == 1
        assert layout.sample.targets == 8
        assert layout.sample.requests == 5
        assert layout.sample.users == 2
        for file in layout.files:
            assert file.standard_error == 0
            assert min(file.disk_bytes, file.write_seconds, file.read_seconds) > 0


@pytest.mark.slow
def test_a_sample_is_drawn_by_its_seed_and_is_near_the_read_layout(
    larger: Dataset, exact: tuple[Path, Savings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longbatch.jobs.savings.measure.LEAST_BUDGET_BYTES", 0)
    first, again, other = (measure(larger, tmp_path, budget_bytes=20_000, seed=s) for s in (1, 1, 2))
    sizes = [[file.disk_bytes for layout in run.layouts for file in layout.files] for run in (first, again, other)]
    assert sizes[0] == sizes[1] != sizes[2]
    for layout, full in zip(first.layouts, exact[1].layouts, strict=True):
        assert layout.memory_bytes == pytest.approx(full.memory_bytes, rel=0.03)
    sampled = first.layout("sample_level_by_log")
    assert sampled.sample.share < 1
    assert (sampled.file("Arrow lz4").standard_error or 0) > 0


@pytest.mark.slow
def test_layouts_that_interleave_users_are_lower_bounds_if_only_some_blocks_are_sampled(
    larger: Dataset, exact: tuple[Path, Savings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(layout.is_lower_bound for layout in exact[1].layouts)
    monkeypatch.setattr(survey_module, "SURVEY_RECORDS", 900)
    savings = measure(larger, tmp_path / "part")
    assert [layout.name for layout in savings.layouts if layout.is_lower_bound] == [
        "sample_level_shuffled", "sample_level_by_log", "request_level_by_log",
    ]  # fmt: skip
    page = (tmp_path / "part" / "savings.html").read_text()
    assert "their sizes are lower bounds" in page
    assert "at least " in page
    assert "lower bounds" not in (exact[0] / "savings.html").read_text()


def test_an_output_that_is_a_file_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    for out in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(SpecError, match=r"file is a file, but the report needs a folder\. Choose another output"):
            measure(tiny, out)


@pytest.mark.slow
def test_a_dataset_without_any_history_can_be_measured(tmp_path: Path) -> None:
    savings = measure(build_rows(tmp_path, ROWS[:3]), tmp_path / "out")
    assert savings.means.history_per_target == 0
    assert savings.layout("sample_level_by_log").copies_per_event == 0


def test_a_budget_that_is_too_small_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="budget_bytes is 10, the minimum is 1,000,000"):
        measure(tiny, tmp_path, budget_bytes=10)


def test_a_full_disk_is_reported_and_leaves_no_file(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("longbatch.jobs.savings.layout_timing.write_tables", full)
    threads = pa.cpu_count()
    with pytest.raises(MachineError, match=r"cannot write .*: No space left on device\. Free space"):
        measure(tiny, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert pa.cpu_count() == threads
