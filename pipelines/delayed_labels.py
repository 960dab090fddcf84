"""Delayed labels: what a user did with a target's item within a time after the request.

Actions and targets match by user, item and, if actions have one, request id. With actions sorted by match group and
time, the actions that count for a target are one range, found by two binary searches. A label reduces that range.
"""

from __future__ import annotations

from typing import TypeVar, assert_never

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.pipelines.arrays.sorting import paired_keys, sort_rows
from longbatch.schemas.errors import DataError
from longbatch.schemas.ragged import offsets_of, owners_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Label
from longbatch.schemas.types import BoolArray, Int64Array

from .parse import polars_type
from .request_grouping import Requests

GROUP = "_group"
Number = TypeVar("Number", np.int64, np.float64)


def closed_requests(spec: BuildSpec, requests: pl.DataFrame, log_end: int | None) -> BoolArray:
    """Return which requests have all their label windows closed when the log of actions ends.

    Args:
        spec: The build spec.
        requests: R requests.
        log_end: Microseconds up to which actions are complete; None if there is no action.

    Returns:
        (R,); the labels of the other requests could still change.
    """
    # The longest window decides for all labels of a request: if one is still open, its label may be 0 only because the
    # log ends.
    longest = max(label.within_us for label in spec.requests.delayed_labels.values())
    if log_end is None:
        return np.zeros(requests.height, dtype=np.bool_)
    return np.asarray(requests["request_time"].to_numpy() <= log_end - longest)


def add_delayed_labels(spec: BuildSpec, requests: Requests, actions: pl.DataFrame) -> Requests:
    """Add the labels that are computed from actions.

    A request of user 7 at 10 has the targets a and b: match groups [0, 1].
    The user's actions are on a at 15 and on c at 20: the first is in group 0, the second matches no target.
    Within 20, the actions [0, 1) count for a, and none for b, so a label with the aggregate `count` is [1, 0].

    Args:
        spec: The build spec.
        requests: Requests whose label windows are closed.
        actions: All actions of the users, in the role's names of the columns.

    Returns:
        The requests with a column label.<label> per delayed label.

    Raises:
        DataError: A label's value does not fit its type.
    """
    owner = owners_of(requests.target_offsets)
    targets = requests.requests.select("user_id", "request_id", "request_time")[owner]
    targets = targets.with_columns(requests.targets["item_id"])
    keys = ["user_id", "item_id", *(["request_id"] if "request_id" in actions.columns else [])]
    # Numbering the distinct keys turns several columns, some of them strings, into one integer.
    groups = targets.select(keys).unique().with_row_index(GROUP)
    # A left join in order, because the result is a column beside the targets; none is null, as `groups` has all keys.
    target_group = targets.join(groups, on=keys, how="left", maintain_order="left")[GROUP].to_numpy()
    # An inner join drops the actions on items that were not targets before anything is sorted.
    matches = actions.join(groups, on=keys, how="inner")
    labels = {}
    for name, label in spec.requests.delayed_labels.items():
        # The `where` of a label left null values on the actions that it does not select.
        values = matches.select(GROUP, "event_time", value=f"value.{name}").drop_nulls("value")
        if values["value"].dtype.is_float():
            values = values.filter(pl.col("value").is_not_nan())
        # By value too, so that the sum of floats does not depend on the order of the log (docs/semantics.md).
        values = values[sort_rows(values, [GROUP, "event_time", "value"]).permutation]
        low, high = _counted_ranges(values, target_group, targets["request_time"].to_numpy(), label.within_us)
        reduced = _reduced(label, values["value"].to_numpy(), low, high)
        labels[f"label.{name}"] = _cast_label(name, label, reduced, targets)
    return Requests(requests.requests, requests.targets.with_columns(**labels), requests.target_offsets, requests.rows)


def _counted_ranges(
    values: pl.DataFrame, group: npt.NDArray[np.integer], start: Int64Array, within_us: int
) -> tuple[Int64Array, Int64Array]:
    """Return the range [low, high) of the sorted actions that count for each target, (G,) both.

    Actions (group, time): (0, 10), (0, 25), (0, 30), (1, 10). Target of group 0 at time 10, within 20:
    low is the first action not before (0, 10), high the first not before (0, 30).
    Result: [0, 2), the actions at 10 and 25.
    """
    groups = np.concatenate([values[GROUP].to_numpy(), group, group])
    # Actions and both ends of all ranges share one key space, so plain binary searches compare pairs.
    keys = paired_keys(groups, np.concatenate([values["event_time"].to_numpy(), start, start + within_us]))
    action_keys, range_keys = keys[: values.height], keys[values.height :]
    # side="left" for both ends is the half-open window: start <= time < start + within.
    bounds = np.searchsorted(action_keys, range_keys, side="left").astype(np.int64)
    return bounds[: len(group)], bounds[len(group) :]


def _reduced(label: Label, values: npt.NDArray[np.generic], low: Int64Array, high: Int64Array) -> pl.Series:
    """Reduce each range of values; an empty range gives 0, or the label's default."""
    match label.aggregate:
        case "any":
            return pl.Series((high > low).astype(np.int8))
        case "count":
            return pl.Series(high - low)
        case "max" if label.type.startswith("float"):
            return pl.Series(_maxima(label, values.astype(np.float64), low, high))
        case "max":
            return pl.Series(_maxima(label, values.astype(np.int64), low, high))
        case "sum" if label.type.startswith("float"):
            return range_sums(values.astype(np.float64), low, high)
        case "sum":
            return _integer_sums(values.astype(np.int64), low, high)
        case None:
            raise ValueError("the label has no aggregate, so it is not a delayed label")
        case _:
            assert_never(label.aggregate)


def _integer_sums(values: Int64Array, low: Int64Array, high: Int64Array) -> pl.Series:
    """Return exact sums of ranges of integers, (G,), by prefix sums modulo 2^64; null where 64 bits are too few.

    Values [3, 4, 5] have the prefix sums [0, 3, 7, 12].
    The sum of range [1, 3) is 12 - 3 = 9; wrap-around cancels out in the difference.
    """
    prefix = offsets_of(values)
    sums = pl.Series(prefix[high] - prefix[low])
    if not len(values) or float(np.abs(values.astype(np.float64)).max()) * len(values) < 2.0**63:
        return sums
    # Only here can a sum overflow: approximate prefix sums in extended precision show where.
    rough = np.concatenate([np.zeros(1, dtype=np.longdouble), np.cumsum(values.astype(np.longdouble))])
    return sums.set(pl.Series(np.abs(rough[high] - rough[low]) >= 2.0**63), None)


def _maxima(label: Label, values: npt.NDArray[Number], low: Int64Array, high: Int64Array) -> npt.NDArray[Number]:
    """Return the maxima of ranges, (G,), by a sparse table for range maximum, built level by level.

    Level p has the maximum of each 2^p consecutive values. Two of them, which overlap, cover a range of 2^p to 2^(p+1).
    Values [3, 9, 4, 1], range [0, 3): its power p is 1, and level 1 is level_values = [9, 9, 4].
    The maximum is max(level_values[0], level_values[3 - 2]) = max(9, 9) = 9.
    """
    maxima = np.full(len(low), label.default or 0, dtype=values.dtype)
    is_filled = high > low
    # log2 of a power of two is exact. It rounds 2^k - 1 up to k only from k of about 48 on, and no range is that long.
    power = np.zeros(len(low), dtype=np.int64)
    power[is_filled] = np.log2(high[is_filled] - low[is_filled]).astype(np.int64)
    level_values = values  # level 0
    for level in range(int(power.max(initial=0)) + 1 if is_filled.any() else 0):
        on_level = is_filled & (power == level)
        width = 1 << level
        maxima[on_level] = np.maximum(level_values[low[on_level]], level_values[high[on_level] - width])
        # In place of a table of all levels: ranges are served level by level, so only one level is in memory.
        if len(level_values) > width:
            level_values = np.maximum(level_values[:-width], level_values[width:])
    return maxima


def range_sums(values: npt.NDArray[np.float64], low: Int64Array, high: Int64Array) -> pl.Series:
    """Return sums of ranges of floats, (G,); a sum is null where finite values overflow.

    Each range is added on its own, so that its sum is independent of other ranges: a difference of prefix sums would
    round by what comes before. Values [1, 2, 3, 4, 5], ranges [3, 5) and [0, 2): by `low` the bounds are [0, 2, 3, 5].
    reduceat adds [0, 2), the gap [2, 3), [3, 5) and the rest: [3, 3, 9, 0], of which [3, 9] are the ranges.
    """
    filled = np.flatnonzero(high > low)
    sums = np.zeros(len(low))
    if len(filled):
        # reduceat also adds the values from the end of each range to the start of the next. In the order of `low` these
        # gaps are disjoint, and cost one pass in total; in the order of targets each could be as long as all values.
        by_low = filled[np.argsort(low[filled], kind="stable")]
        bounds = np.stack([low[by_low], high[by_low]], axis=1).reshape(-1)
        padded = np.append(values, 0.0)  # reduceat refuses an index behind the last value, which an end may be
        with np.errstate(over="ignore", invalid="ignore"):
            sums[by_low] = np.add.reduceat(padded, bounds)[::2]
    # A sum with an infinite value is rightly infinite. Prefix counts of such values find the sums without one: these
    # overflowed.
    infinite_before = offsets_of(~np.isfinite(values))
    overflowed = ~np.isfinite(sums) & (infinite_before[high] == infinite_before[low])
    return pl.Series(sums).set(pl.Series(overflowed), None)


def _cast_label(name: str, label: Label, reduced: pl.Series, targets: pl.DataFrame) -> pl.Series:
    """Cast the values to the label's type. Raises DataError for the first that does not fit."""
    cast = reduced.cast(polars_type(label.type), strict=False)
    does_not_fit = cast.is_null()
    if cast.dtype.is_float():
        does_not_fit |= cast.is_infinite() & reduced.is_finite()
    if does_not_fit.any():
        row = int(does_not_fit.arg_max() or 0)
        user, request, _, item = targets.row(row)
        value = "more than 64 bits can hold" if reduced[row] is None else reduced[row]
        remedy = (
            "Declare a wider type for the label."
            if label.type not in ("int64", "float64")
            else "Correct the values in the log of actions."
        )
        raise DataError(
            f"label {name} of user {user}, request {request}, item {item} is {value}, "
            f"which does not fit its type {label.type}. {remedy}"
        )
    return cast
