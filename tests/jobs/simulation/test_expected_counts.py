"""The outcome of every row of a simulated clean_log."""

from __future__ import annotations

from pathlib import Path

from longbatch.jobs.simulation.expected_counts import expected_accounting
from longbatch.jobs.simulation.ground_truth import read_truth
from longbatch.jobs.simulation.simulate import SimulationReport
from longbatch.schemas.accounting import POLICIES, RowAccounting


def test_the_truth_has_the_outcome_of_every_row(corrupt: tuple[Path, SimulationReport]) -> None:
    document = read_truth(corrupt[0]).document
    accounting = RowAccounting(**document["accounting"])
    accounting.check("log")
    assert accounting.rows == document["rows"]
    assert set(accounting.policies) == set(POLICIES) - {"heavy_user_cap"}
    assert document["counts"]["targets"] == document["targets"]
    assert sum(accounting.reasons.values()) > accounting.rejected, "some rows are rejected for two reasons"


def test_a_row_with_two_reasons_is_one_rejected_row() -> None:
    planted = {
        "history": {"duplicate": 3, "filtered": 4, "missing_user": 5, "missing_user+missing_item": 2},
        "requests": {"missing_user": 1, "pending_label": 6, "action": 7},
    }
    assert expected_accounting(100, planted) == RowAccounting(
        rows=128,
        filtered=4,
        rejected=8,
        duplicate=3,
        accepted=107,
        reasons={"missing_item": 2, "missing_user": 8},
        policies={"pending_label": 6},
    )
