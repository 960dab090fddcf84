"""The naive reference, labels from later events: the windows after a request, and what the actions in them add up to.

Decisions where docs/meaning.md leaves room:
* labels of a request that is held back are not computed, so they cannot be of a wrong type either;
* "not of the label's type" holds for counts as for sums. For floats it means a result that overflows to infinity, and
  float32 may round; an infinite value among the actions may make an infinite sum, or NaN;
* sums of floats are added by NumPy, in pairs from 8 values on: bit by bit what `np.add.reduceat` gives.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Label

from .values import Row, Unparsable, value_reader

Actions = dict[tuple[Any, ...], list[Row]]


def windows_are_over(spec: BuildSpec, request_time: int, log_end: int | None) -> bool:
    """Whether the log of actions, complete up to `log_end`, covers every window after a request; in microseconds."""
    ends = [request_time + label.within_us for label in spec.requests.delayed_labels.values()]
    return all(log_end is not None and end <= log_end for end in ends)


def actions_by_item(spec: BuildSpec, rows: Iterable[Row]) -> Actions:
    """Return one user's actions, oldest first, by what they must share with a target."""
    actions: Actions = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["event_time"]):
        actions[_shared(spec, row["item_id"], row.get("request_id"))].append(row)
    return actions


def _shared(spec: BuildSpec, item_id: int, request_id: int | str | None) -> tuple[Any, ...]:
    return (item_id, request_id) if spec.section("actions").request_id else (item_id,)


def delayed_labels(
    spec: BuildSpec, actions: Actions, user_id: int, request_id: int | str, request_time: int, item_id: int
) -> Row:
    """Return the labels of one target that come from later events; raises DataError where one is not of its type."""
    labels: Row = {}
    for name, label in spec.requests.delayed_labels.items():
        rows = actions.get(_shared(spec, item_id, request_id), [])
        first = bisect.bisect_left(rows, request_time, key=_time)
        last = bisect.bisect_left(rows, request_time + label.within_us, key=_time)
        values = _sorted_values(rows[first:last], f"value.{name}")
        result = _aggregate(label, values)
        if _overflows(label, result, values):
            raise DataError(
                f"label {name} of user {user_id}, request {request_id}, item {item_id} is {result}, "
                f"which is not of type {label.type}; declare a wider type"
            )
        labels[name] = value_reader(label)(result)
    return labels


def _time(row: Row) -> Any:
    return row["event_time"]


def _sorted_values(rows: list[Row], name: str) -> list[Any]:
    """Return what the actions of a window add, in the order (event_time, value), without null and NaN."""
    added = [row for row in rows if row[name] is not None and not math.isnan(row[name])]
    return [row[name] for row in sorted(added, key=lambda row: (row["event_time"], row[name]))]


def _aggregate(label: Label, values: list[Any]) -> Any:
    """Return a label from the values of its window; whole numbers are exact, of whatever size."""
    if label.aggregate == "any":
        return int(bool(values))
    if label.aggregate == "count":
        return len(values)
    if label.aggregate == "max":
        return max(values, default=label.default or 0)
    return _sum_of_floats(values) if label.type.startswith("float") and values else sum(values)


def _sum_of_floats(values: list[float]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.add.reduceat(np.array(values, np.float64), [0])[0])


def _overflows(label: Label, result: Any, values: list[Any]) -> bool:
    """Whether a result is no value of the label's type: out of its range, or infinite where no action is."""
    try:
        value_reader(label)(result)
    except Unparsable:
        return True
    return not math.isfinite(result) and all(map(math.isfinite, values))
