"""Where the repository's parts lie, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RECORDED_RUNS = ROOT / "results" / "runs"
SHARED = ROOT.parent / "shared"  # beside the checkout, where it is at hand
