"""Where tests find files: the repository, the slices of real logs in it, and the full logs next to the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
TEST_DATA = ROOT / "tests" / "data"
SHARED_DATA = ROOT.parent / "shared" / "data"
