"""`longbatch validate`: the audit of a dataset, and Great Expectations on the profile and the samples of its build."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from longbatch.jobs.commit.table_files import read_frame
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.snapshot import read_snapshot
from longbatch.schemas.profile import TABLES
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.open_store import Location, open_store
from longbatch.schemas.storage.output_folder import output_folder
from longbatch.schemas.types import ProgressCallback, no_progress
from longbatch.validation.audit.audit import Audit, audit

if TYPE_CHECKING:
    from longbatch.validation.expectations.runner import ExpectationResults

logger = logging.getLogger(__name__)

DATA_DOCS = "reports/data_docs"


@dataclass(frozen=True)
class Validation:
    """Results of a validation.

    Attributes:
        audit: Result of the audit.
        expectations: Results of the expectations; None if they did not run.
    """

    audit: Audit
    expectations: ExpectationResults | None

    @property
    def passed(self) -> bool:
        """Whether the audit has no findings and every expectation is met, warnings aside."""
        return not self.audit.findings and not (self.expectations and self.expectations.failures)

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        expectations = self.expectations.as_dict() if self.expectations else None
        return {**vars(self.audit), "expectations": expectations, "passed": self.passed}


def validate(
    dataset: Location,
    spec: BuildSpec | None = None,
    *,
    users: int | None = 20,
    seed: int = 0,
    expectations: bool = True,
    progress: ProgressCallback = no_progress,
) -> Validation:
    """Audit a dataset and run its expectations, whose Data Docs go to `reports/data_docs` in the dataset.

    If a sample is missing or altered, the audit reports it and no expectation runs.

    Args:
        dataset: Folder or URL of the dataset.
        spec: A spec whose logs to compare with; default: the dataset's own.
        users: Number of users to recompute from the raw log; None: all.
        seed: Seed of the choice of users.
        expectations: Whether to run Great Expectations.
        progress: Receives the progress of the stages.

    Returns:
        Results of both.

    Raises:
        DatasetError: The folder is not a dataset.
        SpecError: A suite of expectations is missing or not valid.
    """
    store = open_store(dataset)
    with logged_stage(logger, "audit"):
        audited = audit(store, spec, users, seed, progress)
    if not expectations:
        return Validation(audited, None)
    from longbatch.validation.expectations.runner import INDEX, run_expectations

    snapshot = read_snapshot(store)
    try:
        frames = {entry.table: read_frame(store, entry, checksum=True) for entry in snapshot.samples}
    except DatasetError:
        return Validation(audited, None)
    samples = {table: frames[table] for table in TABLES if table in frames}
    with logged_stage(logger, "expectations") as stage, output_folder(store, DATA_DOCS) as folder:
        stage.rows = sum(sample.height for sample in samples.values())
        results = run_expectations(
            spec or snapshot.spec, snapshot.profile, samples, snapshot.row_accounting, folder, progress
        )
    if not isinstance(store, LocalStore):
        results = replace(results, data_docs=store.name(f"{DATA_DOCS}/{INDEX}"))
    return Validation(audited, results)
