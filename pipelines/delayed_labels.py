"""Labels from later events: what a user did with a target's item within a time after the request.

Actions and targets meet by user, item and, where actions carry one, request id. Sorted by that and by time, the
actions that count for a target are one range, found by two searches; a label is a reduction over that range.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.pipelines.arrays.sorting import paired_keys, sort_rows
from longbatch.schemas.errors import DataError
from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Label
from longbatch.schemas.types import BoolArray, Int64Array

from .parse import polars_type
from .request_grouping import Requests

GROUP = "_group"


def closed_requests(spec: BuildSpec, requests: pl.DataFrame, log_end: int | None) -> BoolArray:
    """Which requests (R,) have all windows of their labels over when the log of actions ended."""
    longest = max(label.within_us for label in spec.requests.delayed_labels.values())
    if log_end is None:
        return np.zeros(requests.height, dtype=np.bool_)
    return np.asarray(requests["request_time"].to_numpy() <= log_end - longest)


def add_delayed_labels(spec: BuildSpec, grouped: Requests, actions: pl.DataFrame) -> Requests:
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
    for name, label in spec.requests.delayed_labels.items():
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
    if label.type.startswith("float"):
        return _reduced_floats(label, values.astype(np.float64), low, high)
    whole = values.astype(np.int64)
    return _maxima(label, whole, low, high) if label.aggregate == "max" else _sums(whole, low, high)


def _sums(values: Int64Array, low: Int64Array, high: Int64Array) -> pl.Series:
    """Sums of ranges of whole numbers, by prefix sums modulo 2^64; null where 64 bits cannot hold one."""
    before = offsets_of(values)
    sums = pl.Series(before[high] - before[low])
    if not len(values) or float(np.abs(values.astype(np.float64)).max()) * len(values) < 2.0**63:
        return sums
    rough = np.concatenate([np.zeros(1, dtype=np.longdouble), np.cumsum(values.astype(np.longdouble))])
    return sums.set(pl.Series(np.abs(rough[high] - rough[low]) >= 2.0**63), None)


def _maxima(label: Label, values: npt.NDArray[np.generic], low: Int64Array, high: Int64Array) -> pl.Series:
    """Maxima of ranges: of two overlapping ranges whose length is a power of two, level by level."""
    found = np.full(len(low), label.default or 0, dtype=values.dtype)
    level = np.zeros(len(low), dtype=np.int64)
    some = high > low
    level[some] = np.log2(high[some] - low[some]).astype(np.int64)
    for power in range(int(level.max(initial=0)) + 1 if some.any() else 0):
        here = some & (level == power)
        found[here] = np.maximum(values[low[here]], values[high[here] - (1 << power)])
        values = (
            np.maximum(values[: -(1 << power) or None], values[1 << power :]) if len(values) > 1 << power else values
        )
    return pl.Series(found)


def _reduced_floats(label: Label, values: npt.NDArray[np.float64], low: Int64Array, high: Int64Array) -> pl.Series:
    """Sums of ranges of floats, each added on its own so that it is exact to the bit; null where finite ones overflow."""
    if label.aggregate == "max":
        return _maxima(label, values, low, high)
    some = high > low
    sums = np.zeros(len(low))
    if some.any():
        ends = np.append(values, 0.0)  # an end may lie behind the last value
        with np.errstate(over="ignore", invalid="ignore"):
            sums[some] = np.add.reduceat(ends, np.stack([low[some], high[some]], axis=1).reshape(-1))[::2]
    infinite = offsets_of(~np.isfinite(values))
    lost = ~np.isfinite(sums) & (infinite[high] == infinite[low])
    return pl.Series(sums).set(pl.Series(lost), None)


def _as_label(name: str, label: Label, reduced: pl.Series, asked: pl.DataFrame) -> pl.Series:
    """Return the values in the label's type. Raises DataError for the first that does not fit."""
    cast = reduced.cast(polars_type(label.type), strict=False)
    lost = cast.is_null() | (cast.is_infinite() & reduced.is_finite() if cast.dtype.is_float() else cast.is_null())
    if lost.any():
        place = int(lost.arg_max() or 0)
        user, request, _, item = asked.row(place)
        found = "more than 64 bits hold" if reduced[place] is None else reduced[place]
        remedy = "declare a wider type" if label.type not in ("int64", "float64") else "mend the actions"
        raise DataError(
            f"label {name} of user {user}, request {request}, item {item} is {found}, "
            f"which is not of type {label.type}; {remedy}"
        )
    return cast
