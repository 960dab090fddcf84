"""A log of three rows with its spec, for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import polars as pl

SPEC = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "time", unit = "s" }
[requests]
source = "log"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "time", unit = "s" }
labels = { click = "int8" }
"""


def write_three_row_log(folder: Path) -> Path:
    """Write log.parquet and spec.toml, and return the path of the spec."""
    log = pl.DataFrame(
        {
            "user_id": [7, 7, 8],
            "item_id": [1, 2, 3],
            "time": [1_700_000_000, 1_700_000_010, 1_700_000_020],
            "click": [0, 1, 1],
        }
    )
    log.write_parquet(folder / "log.parquet")
    (folder / "spec.toml").write_text(SPEC)
    return folder / "spec.toml"
