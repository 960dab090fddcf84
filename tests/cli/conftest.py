"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from three_row_log import write_three_row_log


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec next to a log of three rows."""
    return write_three_row_log(tmp_path)
