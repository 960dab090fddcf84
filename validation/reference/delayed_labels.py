"""The naive reference, delayed labels: labels computed from actions in a window after the request.

Decisions where docs/semantics.md leaves room:
* labels of a pending request are not computed, so they cannot overflow their type either;
* counts are checked against the label's type as sums are. A float result overflows if it is infinite and no action's
  value is; rounding to float32 is allowed, and infinite values among the actions may add up to infinity or NaN;
* float sums are added by NumPy, pairwise from 8 values on: bit by bit what `np.add.reduceat` returns.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import assert_never

import numpy as np

from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Label

from .values import Row, UnparsableError, value_reader

Actions = dict[tuple[int | str | None, ...], list[Row]]


def label_windows_are_closed(spec: BuildSpec, request_time: int, log_end: int | None) -> bool:
    """Return whether the log of actions covers every label window of a request.

    Args:
        spec: The build spec.
        request_time: The request's time, in microseconds UTC.
        log_end: The actions are complete up to this time, in microseconds UTC. None if there are no actions.
    """
    window_ends = [request_time + label.within_us for label in spec.requests.delayed_labels.values()]
    return all(log_end is not None and end <= log_end for end in window_ends)


def actions_by_target(spec: BuildSpec, rows: Iterable[Row]) -> Actions:
    """Group one user's actions by the ids that they must share with a target.

    Args:
        spec: The build spec.
        rows: The user's actions, by the names of the actions role.

    Returns:
        The actions by item id, or by item id and request id where the actions have one; each list is oldest first.
    """
    actions: Actions = defaultdict(list)
    for row in sorted(rows, key=_event_time):
        actions[_target_key(spec, row["item_id"], row.get("request_id"))].append(row)
    return actions


def _target_key(spec: BuildSpec, item_id: int, request_id: int | str | None) -> tuple[int | str | None, ...]:
    return (item_id, request_id) if spec.section("actions").request_id else (item_id,)


def delayed_labels(
    spec: BuildSpec, actions: Actions, user_id: int, request_id: int | str, request_time: int, item_id: int
) -> Row:
    """Compute the delayed labels of one target.

    An action counts if `request_time <= event_time < request_time + within`.

    Args:
        spec: The build spec.
        actions: The user's actions, from `actions_by_target`.
        user_id: The user, for the error message.
        request_id: The target's request.
        request_time: The request's time, in microseconds UTC.
        item_id: The target's item.

    Returns:
        The labels by name.

    Raises:
        DataError: A label does not fit its type.
    """
    labels: Row = {}
    for name, label in spec.requests.delayed_labels.items():
        rows = actions.get(_target_key(spec, item_id, request_id), [])
        first = bisect.bisect_left(rows, request_time, key=_event_time)
        last = bisect.bisect_left(rows, request_time + label.within_us, key=_event_time)
        values = _sorted_values(rows[first:last], f"value.{name}")
        result = _aggregate(label, values)
        if _overflows(label, result, values):
            raise DataError(
                f"label {name!r} of user {user_id}, request {request_id}, item {item_id} is {result}, "
                f"which does not fit its type {label.type}. Declare a wider type."
            )
        labels[name] = value_reader(label)(result)
    return labels


def _event_time(row: Row) -> int:
    time_us: int = row["event_time"]
    return time_us


def _sorted_values(rows: list[Row], name: str) -> list[float]:
    """Return the values of the actions in a window in the order (event_time, value), without null and NaN."""
    present = [row for row in rows if row[name] is not None and not math.isnan(row[name])]
    return [row[name] for row in sorted(present, key=lambda row: (row["event_time"], row[name]))]


def _aggregate(label: Label, values: list[float]) -> float:
    """Return a label from the values in its window; integers are exact, whatever their size."""
    match label.aggregate:
        case "any":
            return int(bool(values))
        case "count":
            return len(values)
        case "max":
            return max(values, default=label.default or 0)
        case "sum":
            return _float_sum(values) if label.type.startswith("float") and values else sum(values)
        case None:
            raise ValueError("the label has no aggregate, so it is not a delayed label")
        case _:
            assert_never(label.aggregate)


def _float_sum(values: list[float]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.add.reduceat(np.array(values, np.float64), [0])[0])


def _overflows(label: Label, result: float, values: list[float]) -> bool:
    """Return whether a result is out of its type's range, or infinite although all values are finite."""
    try:
        value_reader(label)(result)
    except UnparsableError:
        return True
    return not math.isfinite(result) and all(map(math.isfinite, values))
