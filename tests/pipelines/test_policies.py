"""Policies over users: who is left out, and under which policy a row counts that plays several roles."""

from __future__ import annotations

import numpy as np
import polars as pl

from longbatch.pipelines.in_memory import InMemoryDataset, build_in_memory
from longbatch.pipelines.policies import (
    HEAVY_USER_CAP,
    KEPT,
    NO_ROLE,
    PENDING_LABEL,
    REJECTED_USER,
    apply_user_policies,
    policy_counts,
)
from longbatch.schemas.profile import Large
from longbatch.schemas.spec.build_spec import BuildSpec, Users

EVENTS = np.array([1, 1, 1, 2, 3, 3], dtype=np.int64)
TARGETS = np.array([3, 1, 9, 2], dtype=np.int64)


def test_without_a_policy_everything_is_kept() -> None:
    judged = apply_user_policies(Users(), EVENTS, TARGETS)
    assert not judged.events.any()
    assert not judged.targets.any()
    assert judged.users == {}


def test_a_heavy_user_keeps_the_newest_events_and_all_targets() -> None:
    judged = apply_user_policies(Users(max_events=2), EVENTS, TARGETS)
    assert judged.events.tolist() == [HEAVY_USER_CAP, KEPT, KEPT, KEPT, KEPT, KEPT]
    assert not judged.targets.any()
    assert (judged.counts.capped_users, judged.counts.capped_events) == (1, 1)
    assert judged.users == {"heavy_user_cap": (Large(3, "1"),)}


def test_a_user_with_exactly_max_events_is_not_heavy() -> None:
    assert not apply_user_policies(Users(max_events=3), EVENTS, TARGETS).events.any()


def test_a_rejected_user_loses_events_and_targets() -> None:
    judged = apply_user_policies(Users(max_events=2, over_max_events="reject_user"), EVENTS, TARGETS)
    assert judged.events.tolist() == [REJECTED_USER] * 3 + [KEPT] * 3
    assert judged.targets.tolist() == [KEPT, REJECTED_USER, KEPT, KEPT]
    counts = judged.counts
    assert (counts.rejected_users, counts.rejected_events, counts.rejected_targets) == (1, 3, 1)


def test_a_user_without_events_has_a_short_history() -> None:
    judged = apply_user_policies(Users(min_events=2), EVENTS, TARGETS)
    assert judged.counts.short_users == 2
    assert (judged.counts.short_events, judged.counts.short_targets) == (1, 2)
    assert judged.users == {"short_history": (Large(1, "2"), Large(0, "9"))}


def test_a_row_counts_under_the_policy_that_took_its_last_role() -> None:
    events = np.array([HEAVY_USER_CAP, HEAVY_USER_CAP, KEPT, NO_ROLE, NO_ROLE], dtype=np.uint8)
    targets = np.array([KEPT, PENDING_LABEL, PENDING_LABEL, PENDING_LABEL, NO_ROLE], dtype=np.uint8)
    assert policy_counts(events, targets, np.zeros(5, dtype=np.bool_)) == {"pending_label": 2}


def test_a_row_that_is_also_an_action_stays_accepted() -> None:
    gone = np.array([REJECTED_USER, REJECTED_USER], dtype=np.uint8)
    assert policy_counts(gone, gone, np.array([True, False])) == {"rejected_user": 1}


def build(users: dict[str, object]) -> InMemoryDataset:
    spec = BuildSpec.model_validate(
        {
            "sources": {"log": {"path": "log.parquet"}},
            "history": {
                "source": "log",
                "user_id": "user",
                "item_id": "item",
                "event_time": {"column": "t", "unit": "s"},
            },
            "requests": {
                "source": "log",
                "where": "shown",
                "user_id": "user",
                "item_id": "item",
                "request_time": {"column": "t", "unit": "s"},
            },
            "users": users,
        }
    )
    t = [1_700_000_000 + n for n in range(5)]
    log = pl.DataFrame(
        {"user": [1, 1, 1, 1, 2], "item": [1, 2, 3, 4, 5], "t": t, "shown": [True, False, False, True, True]}
    )
    return build_in_memory(spec, {"log": log})


def test_a_capped_event_that_is_a_target_stays_a_target() -> None:
    built = build({"max_events": 2})
    assert built.row_accounting["log"].policies == {"heavy_user_cap": 1}
    assert (built.counts.capped_events, built.counts.targets, built.counts.events) == (2, 3, 3)


def test_the_accounting_of_a_build_with_policies_adds_up() -> None:
    built = build({"max_events": 2, "over_max_events": "reject_user", "min_events": 1})
    accounting = built.row_accounting["log"]
    assert (accounting.accepted, accounting.policies) == (1, {"rejected_user": 4})
    assert built.counts.requests == 1
