"""Type aliases that all folders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# pyarrow's classes are generic in its type stubs only. These names stand for arrays and fields of any Arrow type.
ArrowArray: TypeAlias = "pa.Array[Any]"
ArrowListArray: TypeAlias = "pa.ListArray[Any]"
ArrowField: TypeAlias = "pa.Field[Any]"

ProgressCallback = Callable[[str, float, float], None]
"""Receives the progress of a stage: its name, the amount done and the total, in the same unit."""


def no_progress(stage: str, done: float, total: float) -> None:
    """Ignore progress: the default of every `progress` parameter.

    Args:
        stage: Name of the stage.
        done: Amount of work done.
        total: Amount of work in the stage.
    """
