"""Fixtures of the contract tests; shared plumbing lives in modules of the tests folder."""

from tests.api_server import *  # noqa: F403
from tests.cli_terminal import *  # noqa: F403
