"""Where tests find files: the repository, the logs that ship with the tests, and the larger real logs beside the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
TEST_DATA = ROOT / "tests" / "data"
SHARED_DATA = ROOT.parent / "shared" / "data"
