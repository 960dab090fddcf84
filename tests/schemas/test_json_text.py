import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest

from longbatch.schemas.json_text import as_json


def test_nan_and_infinity_become_null_at_any_depth() -> None:
    document = {
        "auc": math.nan,
        "rows": [{"ne": math.inf, "targets": 3}, (1.5, -math.inf)],
        "time": datetime(2024, 1, 1, tzinfo=UTC),
    }
    assert json.loads(as_json(document), parse_constant=lambda name: 1 / 0) == {
        "auc": None,
        "rows": [{"ne": None, "targets": 3}, [1.5, None]],
        "time": "2024-01-01 00:00:00+00:00",
    }


def test_numpy_numbers_are_written_and_other_types_are_rejected() -> None:
    assert json.loads(as_json([np.float32(1.5), np.int64(3), np.float64("nan")])) == [1.5, 3, None]
    with pytest.raises(TypeError, match="of type object cannot be written as JSON"):
        as_json({"x": object()})
