"""Datasets and reports that the tests of `jobs/savings` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from measured_datasets import ROWS, build_rows

from longbatch.jobs.build import build
from longbatch.jobs.savings.measure import measure
from longbatch.jobs.savings.results import Savings
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import parse_spec

SPEC = """
history_length = 5
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
labels = { click = "int8" }
"""


@pytest.fixture(scope="session")
def savings(tmp_path_factory: pytest.TempPathFactory) -> Savings:
    """Results of 40 users with 60 events each, 30 requests each."""
    folder = tmp_path_factory.mktemp("savings")
    rows = [(user, 100 * user + k // 2, k % 17, 1_700_000_000 + k // 2, k % 2) for user in range(40) for k in range(60)]
    pl.DataFrame(rows, ["user", "request", "item", "time", "click"], orient="row").write_parquet(folder / "log.parquet")
    build(parse_spec(SPEC).with_paths_from(folder), folder / "dataset")
    return measure(open_dataset(folder / "dataset"), folder / "out")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_rows(tmp_path_factory.mktemp("tiny"), ROWS)


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rng = np.random.default_rng(3)
    rows = [
        (request, request % 20, int(rng.integers(0, 5_000)), int(rng.integers(1, 500)), position, 0)
        for request in range(400)
        for position in range(int(rng.integers(1, 6)))
    ]
    return build_rows(tmp_path_factory.mktemp("larger"), rows)


@pytest.fixture(scope="session")
def measured(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Savings]:
    out = tmp_path_factory.mktemp("measured") / "report"
    return out, measure(tiny, out)


@pytest.fixture(scope="session")
def exact(larger: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Savings]:
    out = tmp_path_factory.mktemp("exact") / "report"
    return out, measure(larger, out)
