"""Results as JSON that every reader takes: what is not a number is null, for the standard has no NaN."""

from __future__ import annotations

import json
import math
from typing import Any


def as_json(document: Any) -> str:
    """The text of a document of mappings, sequences, numbers and texts; anything else as `str` says it."""
    return json.dumps(_finite(document), indent=1, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
