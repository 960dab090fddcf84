from __future__ import annotations

from pathlib import Path

import pytest
from block_rows import random_shards, write_dataset


@pytest.fixture(scope="session")
def random_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 3 shards of 4 blocks of 3 users, about 180 requests."""
    return write_dataset(tmp_path_factory.mktemp("random") / "dataset", random_shards())
