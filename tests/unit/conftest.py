"""Fixtures of the unit tests; shared plumbing lives in modules of the tests folder."""

from tests.databases import *  # noqa: F403
