"""Arrow arrays of NumPy integers; the type stubs of pyarrow do not know what `pa.array` makes of a NumPy array."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def int32_array(values: npt.NDArray[np.integer]) -> pa.Int32Array:
    """Return values, (N,), as an Arrow array of int32; they must be in its range."""
    return cast("pa.Int32Array", pa.array(values.astype(np.int32)))
