"""The spec of a simulated log fits the log."""

from __future__ import annotations

import tomllib
from pathlib import Path

import polars as pl
from simulated_logs import COLUMNS

from longbatch.jobs.simulation.rows import LABELS
from longbatch.jobs.simulation.simulate import SimulationReport
from longbatch.schemas.spec.build_spec import load_spec


def test_the_spec_maps_the_columns_of_the_log(clean: tuple[Path, SimulationReport]) -> None:
    spec = load_spec(clean[0] / "spec.toml")
    assert spec.sources["log"].path == (str(clean[0].resolve() / "log" / "*.parquet"),)
    assert spec.history.where == "tab = 0"
    assert set(spec.requests.labels) == set(LABELS)
    raw = tomllib.loads((clean[0] / "spec.toml").read_text())
    mapped = raw["history"]["features"] | raw["requests"]["target_features"] | raw["requests"]["labels"]
    for name, type_name in mapped.items():
        declared = type_name if isinstance(type_name, str) else type_name["type"]
        assert COLUMNS[name] == getattr(pl, declared.capitalize())


def test_the_clean_log_keeps_the_declared_ranges_and_values(
    clean: tuple[Path, SimulationReport], clean_log: pl.DataFrame
) -> None:
    spec = load_spec(clean[0] / "spec.toml")
    targets = clean_log.filter(pl.col("tab") > 0)
    requests = spec.requests
    for rows, features in ((clean_log, spec.history.features), (targets, requests.target_features | requests.features)):
        for name, feature in features.items():
            if feature.min is not None:
                assert rows[name].is_between(feature.min, feature.max).all()
            if feature.values:
                assert set(rows[name]) == set(feature.values)
    assert spec.users.max_events is None
    assert spec.actions is None
