"""Sizes of columns on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from measured_datasets import ROWS, SPEC, build_rows

from longbatch.jobs.savings.measure import measure
from longbatch.jobs.savings.results import Savings


def test_columns_are_measured_as_stored_and_as_plain_tables(measured: tuple[Path, Savings]) -> None:
    columns = {column.name: column for column in measured[1].columns}
    assert set(columns) >= {"timelines.user_id", "events.item_id", "events.action", "targets.#event", "requests.tab"}
    assert columns["events.item_id"].stored is not None
    assert columns["events.item_id"].parquet is not None
    assert columns["targets.#event"].stored is not None
    assert columns["targets.#event"].arrow is None
    stored = sum(column.stored or 0 for column in columns.values())
    assert stored == pytest.approx(measured[1].stored.disk_bytes)
    assert 0 < (columns["headers"].stored or 0) < stored


@pytest.mark.slow
def test_a_feature_named_offsets_is_separate_from_the_list_offsets(tmp_path: Path) -> None:
    spec = SPEC.replace("features = { action", 'features = { offsets = { column = "action", type = "int16" }, action')
    names = [column.name for column in measure(build_rows(tmp_path, ROWS, spec), tmp_path / "out").columns]
    assert names.count("events.offsets") == names.count("events.#offsets") == 1
