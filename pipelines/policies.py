"""Policies over users: who has too many events, who too few; and the outcome that they give to each event and target.

A outcome is a number: KEPT, or the place of a policy in `schemas.accounting.POLICIES` plus one. A row that plays several
roles is left out only when all of them are, and then counts under the policy that took its last role: the largest outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.schemas.accounting import POLICIES, Counts
from longbatch.schemas.profile import LARGEST, Large
from longbatch.schemas.spec.build_spec import Users
from longbatch.schemas.types import BoolArray, Int64Array

OutcomeCodes = npt.NDArray[np.uint8]
KEPT = 0
REJECTED_USER, SHORT_HISTORY, HEAVY_USER_CAP, PENDING_LABEL = range(1, len(POLICIES) + 1)
NO_ROLE = 255


@dataclass(frozen=True)
class Judged:
    """The outcomes of a bucket's events, (N,), and targets, (G,); what they count; the largest users of each policy."""

    events: OutcomeCodes
    targets: OutcomeCodes
    counts: Counts
    users: dict[str, tuple[Large, ...]]


def judge_users(users: Users, event_user: Int64Array, target_user: Int64Array) -> Judged:
    """Apply the policies to events sorted by user and in timeline order, and to targets in any order."""
    if users.max_events is None and not users.min_events:
        return Judged(_kept(len(event_user)), _kept(len(target_user)), Counts(), {})
    known = np.unique(np.concatenate([event_user, target_user]))
    first = np.searchsorted(event_user, known)
    sizes = np.searchsorted(event_user, known, side="right") - first
    over = sizes > (len(event_user) if users.max_events is None else users.max_events)
    rejecting = users.over_max_events == "reject_user"
    outcome = np.where(over & rejecting, REJECTED_USER, np.where(sizes < users.min_events, SHORT_HISTORY, KEPT))
    outcome = outcome.astype(np.uint8)
    events = np.repeat(outcome, sizes)
    targets = outcome[np.searchsorted(known, target_user)]
    capped = over & (outcome == KEPT)
    if capped.any():
        to_end = np.repeat(first + sizes, sizes) - np.arange(len(event_user))
        events[(to_end > (users.max_events or 0)) & np.repeat(capped, sizes)] = HEAVY_USER_CAP
    counts = Counts(
        capped_users=int(capped.sum()),
        capped_events=int((events == HEAVY_USER_CAP).sum()),
        rejected_users=int((outcome == REJECTED_USER).sum()),
        rejected_events=int((events == REJECTED_USER).sum()),
        rejected_targets=int((targets == REJECTED_USER).sum()),
        short_users=int((outcome == SHORT_HISTORY).sum()),
        short_events=int((events == SHORT_HISTORY).sum()),
        short_targets=int((targets == SHORT_HISTORY).sum()),
    )
    chosen = {REJECTED_USER: outcome == REJECTED_USER, SHORT_HISTORY: outcome == SHORT_HISTORY, HEAVY_USER_CAP: capped}
    named = {
        POLICIES[code - 1]: largest(sizes[hit], pl.Series(known[hit])) for code, hit in chosen.items() if hit.any()
    }
    return Judged(events, targets, counts, named)


def _kept(count: int) -> OutcomeCodes:
    return np.zeros(count, dtype=np.uint8)


def largest(sizes: Int64Array, names: pl.Series) -> tuple[Large, ...]:
    """Return the largest few of things with a size and a name; of equal size, those first by name."""
    things = pl.DataFrame({"size": sizes, "name": names.cast(pl.String)})
    few = things.filter(pl.col("size") >= pl.col("size").top_k(LARGEST).min()).sort(
        "size", "name", descending=[True, False]
    )
    return tuple(Large(size, name) for size, name in few.head(LARGEST).rows())


def policy_counts(event_outcome: OutcomeCodes, target_outcome: OutcomeCodes, is_action: BoolArray) -> dict[str, int]:
    """Rows of a source that a policy left out of every role, by policy.

    Given are per row (N,) the outcomes as event and as target; a role that a row does not play has the outcome NO_ROLE.
    """
    kept = (event_outcome == KEPT) | (target_outcome == KEPT) | is_action
    last = np.maximum(_or_zero(event_outcome), _or_zero(target_outcome))[~kept]
    counts = np.bincount(last, minlength=len(POLICIES) + 1)
    return {policy: int(count) for policy, count in zip(POLICIES, counts[1:], strict=True) if count}


def _or_zero(outcomes: OutcomeCodes) -> OutcomeCodes:
    return np.where(outcomes == NO_ROLE, 0, outcomes).astype(np.uint8)
