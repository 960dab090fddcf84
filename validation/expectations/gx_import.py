"""Great Expectations, imported without what it looks for and is not needed here."""

from __future__ import annotations

import os
import sys
from typing import Any

from longbatch.schemas.errors import MachineError


def great_expectations() -> Any:
    """Import the library: no telemetry unless the user asks for it, no Spark. Raises MachineError if it is not there.

    On import it looks for Spark, whose client ends the process where the main program is no file (a worker of tests,
    `python -c`). Suites run on pandas, so Spark is hidden from it meanwhile.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    hidden = {name: module for name, module in sys.modules.items() if name == "pyspark"}
    if "great_expectations" not in sys.modules:
        sys.modules["pyspark"] = None  # type: ignore[assignment]
    try:
        import great_expectations as gx
    except ImportError as error:
        message = f'Great Expectations cannot be imported ({error}); pip install "longbatch[validate]"'
        raise MachineError(message) from None
    finally:
        if sys.modules.get("pyspark") is None:
            sys.modules.pop("pyspark", None)
        sys.modules.update(hidden)
    return gx
