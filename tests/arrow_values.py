"""Arrow arrays as Python values, typed as what they are: `to_pylist` of the stubs may return None."""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa

from longbatch.schemas.types import ArrowArray, ArrowListArray


def values_of(array: ArrowArray) -> list[Any]:
    """Return the values of an array."""
    return list(cast("ArrowListArray", array).to_pylist())


def lists_of(array: ArrowArray) -> list[list[Any]]:
    """Return the values of a list array, none of which is null."""
    return cast("list[list[Any]]", values_of(array))


def flat_values(array: ArrowArray) -> pa.Array[Any]:
    """Return the flattened values of a list array."""
    return cast("ArrowListArray", array).flatten()
