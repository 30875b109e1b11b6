"""What stands between a job and the queue besides its rows: memory, and contexts that could not be served."""

from pathlib import Path

import msgspec
from tests.training_runs import bench

from smedje.domain.jobs import JobError
from smedje.modeling.tiny_random import write_tiny_phi3
from smedje.objects.store import open_objects
from smedje.services.context import Context
from smedje.services.preflight import _memory, _too_long_for_serving, predicted_memory
from smedje.store.database import Database
from smedje.training.spec import DataSpec


def test_long_rope_is_refused_beyond_what_is_served(tmp_path: Path) -> None:
    """A longrope base model refuses examples beyond its original context, and names the limit."""
    write_tiny_phi3(tmp_path / "long", longrope=True)
    place = bench(tmp_path).with_spec(base_folder=str(tmp_path / "long"))
    assert _too_long_for_serving(place.with_spec(data=DataSpec(training_key="x", max_tokens=64)).spec) is None
    found = _too_long_for_serving(place.with_spec(data=DataSpec(training_key="x", max_tokens=65)).spec)
    assert found is not None
    assert "64 tokens" in found.message
    assert found.param == "smedje.max_tokens_per_example"


def test_memory_grows_with_the_stream(tmp_path: Path) -> None:
    """More tokens at once, a larger rank: more predicted bytes."""
    spec = bench(tmp_path).spec
    small = predicted_memory(spec)
    assert predicted_memory(msgspec.structs.replace(spec, micro_batch_tokens=8192)) > small
    wide = msgspec.structs.replace(spec.lora, rank=64)
    assert predicted_memory(msgspec.structs.replace(spec, lora=wide)) > small


def test_what_cannot_fit_is_refused(tmp_path: Path, sqlite_database: Database) -> None:
    """A stream of a billion tokens is refused with the machine's memory and what to change."""
    spec = msgspec.structs.replace(bench(tmp_path).spec, micro_batch_tokens=1_000_000_000)
    ctx = Context(database=sqlite_database, objects=open_objects("memory:///"), home=tmp_path)
    found = _memory(ctx, spec)
    assert isinstance(found, JobError)
    assert found.code == "insufficient_memory"
