"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

from smedje.modeling.pull import pull
from tests.tiny_engines import *  # noqa: F403

# Read by OpenMP when torch is first imported: spinning threads would starve the other test processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MODELS = ("smollm2-135m-instruct", "phi-3-tiny-random")


@pytest.fixture(scope="session")
def model_home() -> Path:
    """A state folder with the embedded model and `phi-3-tiny-random` installed; only to be read.

    SMEDJE_TEST_MODELS names a prepared one; otherwise it is made once under .cache and kept. Workers that start
    together are safe: pulling a name is locked between processes.
    """
    named = os.environ.get("SMEDJE_TEST_MODELS")
    home = Path(named) if named else Path(__file__).resolve().parents[1] / ".cache" / "test-home"
    home.mkdir(parents=True, exist_ok=True)
    if not named:
        (home.parent / ".gitignore").write_text("*\n")
    for name in MODELS:
        for _ in pull(name, home=home):
            pass
    return home
