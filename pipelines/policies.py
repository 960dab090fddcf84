"""User policies: which users have too many or too few events, and the outcome of each event and target.

An outcome code is KEPT, or 1 + index into `schemas.accounting.POLICIES`. A row with several roles is excluded only if
all its roles are excluded. It then counts under the policy that took its last role, which has the largest code.
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
class PolicyOutcomes:
    """What the user policies do to a bucket.

    Attributes:
        events: Outcome code of each event, (N,).
        targets: Outcome code of each target, (G,).
        counts: Numbers of users, events and targets excluded.
        users: Policy -> the largest users that it applies to.
    """

    events: OutcomeCodes
    targets: OutcomeCodes
    counts: Counts
    users: dict[str, tuple[Large, ...]]


def apply_user_policies(users: Users, event_user: Int64Array, target_user: Int64Array) -> PolicyOutcomes:
    """Decide which events and targets the user policies keep.

    With max_events = 2, keep_newest: events of users [7, 7, 7, 9] get [HEAVY_USER_CAP, KEPT, KEPT, KEPT].
    With max_events = 2, reject_user: the same events get [REJECTED_USER, REJECTED_USER, REJECTED_USER, KEPT],
    and so do all targets of user 7.

    Args:
        users: Section [users] of the spec.
        event_user: User of each event, (N,), in timeline order.
        target_user: User of each target, (G,), in any order.

    Returns:
        Outcome codes, and what they add up to.
    """
    if users.max_events is None and not users.min_events:
        return PolicyOutcomes(_all_kept(len(event_user)), _all_kept(len(target_user)), Counts(), {})
    # Users without events have no run in `event_user`, so users are counted by search.
    known = np.unique(np.concatenate([event_user, target_user]))
    first = np.searchsorted(event_user, known)
    sizes = np.searchsorted(event_user, known, side="right") - first
    is_heavy = sizes > (len(event_user) if users.max_events is None else users.max_events)
    rejects = users.over_max_events == "reject_user"
    # The order of policies (docs/semantics.md, Policies): rejected_user, short_history, then heavy_user_cap below.
    outcome = np.where(is_heavy & rejects, REJECTED_USER, np.where(sizes < users.min_events, SHORT_HISTORY, KEPT))
    outcome = outcome.astype(np.uint8)
    events = np.repeat(outcome, sizes)
    targets = outcome[np.searchsorted(known, target_user)]
    is_capped = is_heavy & (outcome == KEPT)
    if is_capped.any():
        # Events from this one to the end of the user's timeline, itself included: the newest ones have the fewest.
        to_end = np.repeat(first + sizes, sizes) - np.arange(len(event_user))
        events[(to_end > (users.max_events or 0)) & np.repeat(is_capped, sizes)] = HEAVY_USER_CAP
    counts = Counts(
        capped_users=int(is_capped.sum()),
        capped_events=int((events == HEAVY_USER_CAP).sum()),
        rejected_users=int((outcome == REJECTED_USER).sum()),
        rejected_events=int((events == REJECTED_USER).sum()),
        rejected_targets=int((targets == REJECTED_USER).sum()),
        short_users=int((outcome == SHORT_HISTORY).sum()),
        short_events=int((events == SHORT_HISTORY).sum()),
        short_targets=int((targets == SHORT_HISTORY).sum()),
    )
    affected = {
        REJECTED_USER: outcome == REJECTED_USER,
        SHORT_HISTORY: outcome == SHORT_HISTORY,
        HEAVY_USER_CAP: is_capped,
    }
    largest_users = {
        POLICIES[code - 1]: largest(sizes[users_hit], pl.Series(known[users_hit]))
        for code, users_hit in affected.items()
        if users_hit.any()
    }
    return PolicyOutcomes(events, targets, counts, largest_users)


def _all_kept(count: int) -> OutcomeCodes:
    return np.zeros(count, dtype=np.uint8)


def largest(sizes: Int64Array, names: pl.Series) -> tuple[Large, ...]:
    """Return the LARGEST few of some users or requests.

    Args:
        sizes: Size of each, (N,), at least one.
        names: Name of each, (N,).

    Returns:
        By descending size, then by name.
    """
    sized = pl.DataFrame({"size": sizes, "name": names.cast(pl.String)})
    # Only rows that can be among the largest are sorted.
    candidates = sized.filter(pl.col("size") >= pl.col("size").top_k(LARGEST).min())
    ordered = candidates.sort("size", "name", descending=[True, False])
    return tuple(Large(size, name) for size, name in ordered.head(LARGEST).rows())


def policy_counts(event_outcome: OutcomeCodes, target_outcome: OutcomeCodes, is_action: BoolArray) -> dict[str, int]:
    """Count the rows of a source that policies excluded from every role.

    Args:
        event_outcome: Outcome code of each row as an event, (N,); NO_ROLE for a row that is not an event.
        target_outcome: Outcome code of each row as a target, (N,); NO_ROLE for a row that is not a target.
        is_action: Which rows are actions, (N,); policies never exclude these.

    Returns:
        Policy -> number of rows; policies without rows are absent.
    """
    # Codes are in the order of policies, so the policy that took the last role is the maximum.
    kept = (event_outcome == KEPT) | (target_outcome == KEPT) | is_action
    last = np.maximum(_without_no_role(event_outcome), _without_no_role(target_outcome))[~kept]
    counts = np.bincount(last, minlength=len(POLICIES) + 1)
    return {policy: int(count) for policy, count in zip(POLICIES, counts[1:], strict=True) if count}


def _without_no_role(outcomes: OutcomeCodes) -> OutcomeCodes:
    return np.where(outcomes == NO_ROLE, 0, outcomes).astype(np.uint8)
