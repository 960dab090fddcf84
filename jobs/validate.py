"""`longbatch validate`: the audit of a dataset, and Great Expectations on the profile and the samples of its build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.shard import check_file
from longbatch.schemas.format.snapshot import read_snapshot
from longbatch.schemas.profile import TABLES
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import ProgressCallback, no_progress
from longbatch.validation.audit.audit import Audit, audit

if TYPE_CHECKING:
    from longbatch.validation.expectations.runner import ExpectationResults

DATA_DOCS = Path("reports") / "data_docs"


@dataclass(frozen=True)
class Validation:
    """What the audit found, and what became of the expectations; None where they were not asked for."""

    audit: Audit
    expectations: ExpectationResults | None

    @property
    def passed(self) -> bool:
        """Whether nothing was found, and every expectation met that is no warning."""
        return not self.audit.findings and not (self.expectations and self.expectations.failures)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        expectations = self.expectations.as_dict() if self.expectations else None
        return {**vars(self.audit), "expectations": expectations, "passed": self.passed}


def validate(
    path: Path,
    spec: BuildSpec | None = None,
    *,
    users: int | None = 20,
    seed: int = 0,
    expectations: bool = True,
    progress: ProgressCallback = no_progress,
) -> Validation:
    """Audit a dataset (see `audit`), and run its expectations; Data Docs go to `reports/data_docs` in the dataset.

    Samples that the audit finds altered, or that are gone, have no expectations: the findings say so.
    """
    found = audit(path, spec, users, seed, progress)
    if not expectations:
        return Validation(found, None)
    from longbatch.validation.expectations.runner import run_expectations

    snapshot = read_snapshot(path)
    try:
        files = {entry["table"]: check_file(path, entry, checksum=True) for entry in snapshot.samples}
    except DatasetError:
        return Validation(found, None)
    samples = {table: pl.read_parquet(files[table]) for table in TABLES if table in files}
    results = run_expectations(
        spec or snapshot.spec, snapshot.profile, samples, snapshot.row_accounting, path / DATA_DOCS, progress
    )
    return Validation(found, results)
