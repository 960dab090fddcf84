"""Checks of a block that was read: nothing is null that must not be, and every request points into its own timeline.

A reader follows these values as offsets, so that each is checked once before anything uses it.
"""

from __future__ import annotations

from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.types import ArrowArray, ArrowListArray

# The format's own columns of timelines, requests, events and targets, which are never null.
NEVER_NULL = frozenset(
    {"user_id", "segment", "item_id", "event_time", "request_id", "request_time", "timeline_row", "history_end"}
)


def check_no_nulls(batch: pa.RecordBatch, records: str, where: str) -> None:
    """Check that the columns of the format itself have no nulls.

    Args:
        batch: Timelines or requests.
        records: The column of lists: "events" or "targets".
        where: File and block, for the error.

    Raises:
        DatasetError: A column has a null.
    """
    # `null_count` is stored with the array or counted from a bitmap, so these checks never touch the values.
    lists = cast(ArrowListArray, batch[records])
    structs = cast(pa.StructArray, lists.values)
    columns: dict[str, ArrowArray] = {name: batch[name] for name in batch.schema.names if name in NEVER_NULL}
    columns |= {records: lists, f"{records} (elements)": structs}
    columns |= {
        f"{records}.{field.name}": structs.field(field.name) for field in structs.type if field.name in NEVER_NULL
    }
    for name, values in columns.items():
        if values.null_count:
            raise DatasetError(f"{where}: {name} has {values.null_count} nulls but must have none. Build it again.")


def check_history_slices(timelines: pa.RecordBatch, requests: pa.RecordBatch, where: str) -> None:
    """Check that every request points to a timeline of its own user, and that its history is inside this timeline.

    Args:
        timelines: Timelines of the block.
        requests: Requests of the block.
        where: File and block, for the error.

    Raises:
        DatasetError: `timeline_row` or `history_end` is out of range, or the user or segment differs.
    """
    if not requests.num_rows:
        return
    # Rows are checked before they are used: `take` of an unchecked row would read beyond the timelines.
    rows, ends = requests["timeline_row"], requests["history_end"]
    bounds = pc.min_max(rows)
    if rows.null_count or bounds["min"].as_py() < 0 or bounds["max"].as_py() >= timelines.num_rows:
        raise DatasetError(
            f"{where}: timeline_row is outside the {timelines.num_rows} timelines of the block. Build it again."
        )
    lengths = pc.list_value_length(timelines["events"]).take(rows)
    valid = pc.and_(pc.greater_equal(ends, pa.scalar(0, ends.type)), pc.less_equal(ends, lengths))
    if not pc.all(valid, skip_nulls=False).as_py():
        row = _first_false(valid)
        raise DatasetError(
            f"{where}: request row {row} has history_end {ends[row].as_py()}, "
            f"but its timeline has {lengths[row].as_py()} events. Build it again."
        )
    _check_owners(timelines, requests, where)


def _check_owners(timelines: pa.RecordBatch, requests: pa.RecordBatch, where: str) -> None:
    # A row inside the block may still be that of another user, whose history would then leak into the request.
    rows = requests["timeline_row"]
    owners = {name: timelines[name].take(rows) for name in ("user_id", "segment")}
    same_user = pc.equal(requests["user_id"], owners["user_id"])
    valid = pc.and_(same_user, pc.equal(requests["segment"], owners["segment"]))
    if not pc.all(valid, skip_nulls=False).as_py():
        row = _first_false(valid)
        raise DatasetError(
            f"{where}: request row {row} is of user {requests['user_id'][row].as_py()} "
            f"(segment {requests['segment'][row].as_py()}), but its timeline is of user "
            f"{owners['user_id'][row].as_py()} (segment {owners['segment'][row].as_py()}). Build it again."
        )


def _first_false(valid: pa.BooleanArray) -> int:
    """The row of the first value that is False or null."""
    return pc.index(valid.fill_null(False), False).as_py()
