"""Fixtures of the unit tests. Shared plumbing lives in modules of the tests folder."""

import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
