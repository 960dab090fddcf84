"""What other processes run in tests of shards; a module of its own, which a started process can import."""

from __future__ import annotations

import os
from typing import Any

from longbatch.schemas.format.shards_table import ShardsTable


def put_first_shard(shards: ShardsTable, results: Any) -> None:
    """Put the first shard that arrived, and the number of this process."""
    results.put((shards[0], os.getpid()))
