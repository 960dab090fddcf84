"""Labels from later events: what a user did with a target's item within a time after the request.

Actions and targets meet by user, item and, where actions carry one, request id. Sorted by that and by time, the
actions that count for a target are one range, found by two searches; a label is a reduction over that range.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.pipelines.grouping import Requests
from longbatch.pipelines.hashing import Int64Array
from longbatch.pipelines.order import paired_keys, sort_rows
from longbatch.schemas.columns import Label
from longbatch.schemas.errors import DataError
from longbatch.schemas.spec import BuildSpec

GROUP = "_group"
BoolArray = npt.NDArray[np.bool_]
DTYPES = {
    "int8": pl.Int8(),
    "int16": pl.Int16(),
    "int32": pl.Int32(),
    "int64": pl.Int64(),
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
}


def closed_requests(spec: BuildSpec, requests: pl.DataFrame, log_end: int | None) -> BoolArray:
    """Which requests (R,) have all windows of their labels over when the log of actions ended."""
    longest = max(label.within_us for label in spec.requests.later_labels.values())
    if log_end is None:
        return np.zeros(requests.height, dtype=np.bool_)
    return np.asarray(requests["request_time"].to_numpy() <= log_end - longest)


def add_later_labels(spec: BuildSpec, grouped: Requests, actions: pl.DataFrame) -> Requests:
    """Return the requests with their labels from later events; `actions` have the column names of their role."""
    sizes = np.diff(grouped.target_offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    asked = grouped.requests.select("user_id", "request_id", "request_time")[owner]
    asked = asked.with_columns(grouped.targets["item_id"])
    keys = ["user_id", "item_id", *(["request_id"] if "request_id" in actions.columns else [])]
    groups = asked.select(keys).unique().with_row_index(GROUP)
    target_group = asked.join(groups, on=keys, how="left", maintain_order="left")[GROUP].to_numpy()
    met = actions.join(groups, on=keys, how="inner")
    labels = {}
    for name, label in spec.requests.later_labels.items():
        values = met.select(GROUP, "event_time", value=f"value.{name}").drop_nulls("value")
        if values["value"].dtype.is_float():
            values = values.filter(pl.col("value").is_not_nan())
        values = values[sort_rows(values, [GROUP, "event_time", "value"]).permutation]
        low, high = _windows(values, target_group, asked["request_time"].to_numpy(), label.within_us)
        reduced = _reduced(label, values["value"].to_numpy(), low, high)
        labels[f"label.{name}"] = _as_label(name, label, reduced, asked)
    return Requests(grouped.requests, grouped.targets.with_columns(**labels), grouped.target_offsets, grouped.rows)


def _windows(
    values: pl.DataFrame, group: npt.NDArray[np.integer], start: Int64Array, within_us: int
) -> tuple[Int64Array, Int64Array]:
    """Range [low, high) of the sorted actions that count for each target, (G,) both."""
    groups = np.concatenate([values[GROUP].to_numpy(), group, group])
    keys = paired_keys(groups, np.concatenate([values["event_time"].to_numpy(), start, start + within_us]))
    events, targets = keys[: values.height], keys[values.height :]
    found = np.searchsorted(events, targets, side="left").astype(np.int64)
    return found[: len(group)], found[len(group) :]


def _reduced(label: Label, values: npt.NDArray[np.generic], low: Int64Array, high: Int64Array) -> pl.Series:
    """Reduce each range of values; an empty one gives 0, or the label's default."""
    if label.aggregate == "any":
        return pl.Series((high > low).astype(np.int8))
    if label.aggregate == "count":
        return pl.Series(high - low)
    wide = values.astype(np.float64 if label.type.startswith("float") else np.int64)
    reduced = np.full(len(low), label.default or 0, dtype=wide.dtype)
    some = high > low
    if label.aggregate == "max":
        reduced[some] = _over_ranges(np.maximum, wide, low[some], high[some])
        return pl.Series(reduced)
    reduced[some] = _over_ranges(np.add, wide, low[some], high[some])
    return _without_overflow(wide, reduced, low, high)


def _without_overflow(
    values: npt.NDArray[np.generic], sums: npt.NDArray[np.generic], low: Int64Array, high: Int64Array
) -> pl.Series:
    """Return the sums; those that their type could not hold (they wrapped, or became infinite) as null."""
    some = high > low
    rough = np.zeros(len(low))
    with np.errstate(over="ignore", invalid="ignore"):
        rough[some] = _over_ranges(np.add, values.astype(np.float64), low[some], high[some])
    if sums.dtype == np.int64:
        lost = np.abs(rough) >= 2.0**63
    else:
        infinite = np.zeros(len(low), dtype=np.bool_)
        infinite[some] = _over_ranges(np.logical_or, ~np.isfinite(values.astype(np.float64)), low[some], high[some])
        lost = ~np.isfinite(rough) & ~infinite
    return pl.Series(sums).set(pl.Series(lost), None)


def _over_ranges(
    reduce: np.ufunc, values: npt.NDArray[np.generic], low: Int64Array, high: Int64Array
) -> npt.NDArray[np.generic]:
    """Reduce values[low:high] for ranges that are not empty, (G,)."""
    if not len(low):
        return values[:0]
    ends = np.append(values, values[:1])  # an end may lie behind the last value
    return np.asarray(reduce.reduceat(ends, np.stack([low, high], axis=1).reshape(-1))[::2])


def _as_label(name: str, label: Label, reduced: pl.Series, asked: pl.DataFrame) -> pl.Series:
    """Return the values in the label's type. Raises DataError for the first that does not fit."""
    cast = reduced.cast(DTYPES[label.type], strict=False)
    lost = cast.is_null() | (cast.is_infinite() & reduced.is_finite() if cast.dtype.is_float() else cast.is_null())
    if lost.any():
        place = int(lost.arg_max() or 0)
        user, request, _, item = asked.row(place)
        found = "more than 64 bits hold" if reduced[place] is None else reduced[place]
        raise DataError(
            f"label {name} of user {user}, request {request}, item {item} is {found}, "
            f"which is not of type {label.type}; declare a wider type"
        )
    return cast
