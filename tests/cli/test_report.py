from __future__ import annotations

import re

from longbatch.cli.report import _row_outcomes
from longbatch.schemas.accounting import RowAccounting


def test_the_outcomes_of_a_source_add_up_to_its_rows() -> None:
    policies = {"rejected_user": 5, "pending_label": 6}
    accounting = RowAccounting(rows=21, filtered=1, rejected=2, duplicate=3, accepted=4, policies=policies)
    accounting.check("log")
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", _row_outcomes({"log": accounting}))
    counts = dict(zip(cells[::2], map(int, cells[1::2]), strict=True))
    assert counts.pop("rows") == sum(counts.values())
    assert counts["left out: pending_label"] == 6
