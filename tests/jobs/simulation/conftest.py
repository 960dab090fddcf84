"""One clean and one corrupt simulated log, shared by all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from simulated_logs import CORRUPT, SMALL, read_log

from longbatch.jobs.simulation.simulate import SimulationReport, simulate


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationReport]:
    """The folder and the report of a clean log."""
    out = tmp_path_factory.mktemp("simulated") / "clean"
    return out, simulate(out, SMALL)


@pytest.fixture(scope="session")
def corrupt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationReport]:
    """The folder and the report of a log with corrupt rows and outlier users."""
    out = tmp_path_factory.mktemp("simulated") / "corrupt"
    return out, simulate(out, CORRUPT)


@pytest.fixture(scope="session")
def clean_log(clean: tuple[Path, SimulationReport]) -> pl.DataFrame:
    """The rows of the clean log."""
    return read_log(clean[0])
