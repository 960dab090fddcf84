"""Write results as JSON that every parser accepts: NaN and infinity, which the standard lacks, become null."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import PurePath

import numpy as np


def as_json(document: object) -> str:
    """Convert a document to JSON.

    Args:
        document: Mappings, sequences, numbers, strings, dates and paths.

    Returns:
        JSON with an indent of 1.

    Raises:
        TypeError: The document has a value of another type.
    """
    return json.dumps(_finite(document), indent=1, default=_as_string, allow_nan=False)


def _as_string(value: object) -> str:
    if isinstance(value, date | PurePath):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def _finite(value: object) -> object:
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
