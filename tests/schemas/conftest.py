from __future__ import annotations

from pathlib import Path

import pytest
from shard_rows import BLOCKS, write_one_shard

from longbatch.schemas.format.dataset import Dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A dataset of BLOCKS in one shard, at history length 3."""
    return write_one_shard(tmp_path / "dataset", BLOCKS)
