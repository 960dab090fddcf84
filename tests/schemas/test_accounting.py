"""Row accounting: parts add up, and outcomes that do not add up are an error."""

from __future__ import annotations

import pytest

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import DataError


def test_two_parts_add_up_reason_by_reason() -> None:
    first = RowAccounting(rows=5, filtered=1, rejected=2, accepted=2, reasons={"missing_user": 1, "missing_item": 2})
    second = RowAccounting(rows=3, duplicate=1, rejected=1, accepted=1, empty_list=4, reasons={"missing_user": 1})
    assert first + second == RowAccounting(
        rows=8,
        filtered=1,
        rejected=3,
        duplicate=1,
        accepted=3,
        empty_list=4,
        reasons={"missing_item": 2, "missing_user": 2},
    )
    assert (first + second).as_dict()["reasons"] == {"missing_item": 2, "missing_user": 2}


def test_a_row_without_an_outcome_is_an_error() -> None:
    RowAccounting(rows=4, filtered=1, rejected=1, duplicate=1, accepted=1).check("log")
    with pytest.raises(DataError, match=r"source log: 1,000 rows in, but 999 accounted for .* Nothing was committed"):
        RowAccounting(rows=1000, accepted=999).check("log")


def test_counts_add_up() -> None:
    one = Counts(users=1, requests=2, targets=3, events=4, stored=4, stored_with_overlap=4, history_events=5)
    other = Counts(users=1, segments=2, events=3, beyond_history=1, after_last_request=2)
    assert one + other == Counts(
        users=2,
        segments=2,
        requests=2,
        targets=3,
        events=7,
        stored=4,
        stored_with_overlap=4,
        beyond_history=1,
        after_last_request=2,
        history_events=5,
    )


def test_rows_that_a_policy_left_out_are_accounted_for() -> None:
    accounting = RowAccounting(rows=5, accepted=2, policies={"heavy_user_cap": 2, "pending_label": 1})
    accounting.check("log")
    assert (accounting + accounting).policies == {"pending_label": 2, "heavy_user_cap": 4}


def test_accepted_targets_that_are_in_no_request_are_an_error() -> None:
    Counts(targets=7).check(accepted_targets=7)
    with pytest.raises(
        DataError, match=r"log has 8 accepted targets, but the requests of the dataset have 7\. Nothing was"
    ):
        Counts(targets=7).check(accepted_targets=8)


def test_an_accepted_event_that_is_neither_stored_nor_left_out_is_an_error() -> None:
    Counts(events=6, stored=3, beyond_history=2, after_last_request=1).check(6)
    with pytest.raises(
        DataError, match=r"received 6 events, but 5 are in the dataset or counted as left out: 3 stored, 2 b"
    ):
        Counts(events=6, stored=3, beyond_history=2).check(6)
    with pytest.raises(DataError, match=r"log has 7 accepted events, but the kernel received 6\. Nothing was"):
        Counts(events=6, stored=6).check(7)
