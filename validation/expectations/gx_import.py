"""Great Expectations, imported on first use, without Spark and without telemetry."""

from __future__ import annotations

import os
import sys
from typing import Any, TypeAlias

from longbatch.schemas.errors import MachineError

# Great Expectations is optional and its objects are untyped here; the names document what a value is.
GxModule: TypeAlias = Any
GxContext: TypeAlias = Any
GxExpectation: TypeAlias = Any
GxResult: TypeAlias = Any


def great_expectations() -> GxModule:
    """Import Great Expectations, with telemetry off unless the user turned it on.

    Its import looks for Spark, whose client ends the process where the main program is not a file (a test worker,
    `python -c`). Suites run on pandas, so Spark is hidden during the import.

    Returns:
        The module `great_expectations`.

    Raises:
        MachineError: It is not installed.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    hidden = {name: module for name, module in sys.modules.items() if name == "pyspark"}
    if "great_expectations" not in sys.modules:
        sys.modules["pyspark"] = None  # type: ignore[assignment]  # None makes the import fail
    try:
        import great_expectations as gx
    except ImportError as error:
        raise MachineError(
            f'cannot import Great Expectations ({error}). Install it: pip install "longbatch[validate]"'
        ) from None
    finally:
        if sys.modules.get("pyspark") is None:
            sys.modules.pop("pyspark", None)
        sys.modules.update(hidden)
    return gx
