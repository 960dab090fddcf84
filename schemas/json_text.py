"""Results as JSON that every reader takes: what is not a number is null, for the standard has no NaN."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import PurePath
from typing import Any

import numpy as np


def as_json(document: Any) -> str:
    """The text of a document of mappings, sequences, numbers, texts, dates and paths. Raises TypeError for anything else."""
    return json.dumps(_finite(document), indent=1, default=_text, allow_nan=False)


def _text(value: Any) -> str:
    if isinstance(value, date | PurePath):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
