"""A tiny model with three adapters, as fixtures for the tests of our own engine; each test module has its own.

What is tried on it lives in tests/contract/engine_suite.py. torch is loaded by who asks for the model alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from smedje.modeling.transformer import CausalDecoder

__all__ = ["folder", "model", "objects"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder."""
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object storage for the adapters."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def model(folder: Path, objects: Path) -> "CausalDecoder":
    """A tiny model in `folder`, whose adapters are in `objects`."""
    from tests.contract.engine_suite import tiny_model, write_adapters

    model = tiny_model(folder)
    write_adapters(model, objects)
    return model
