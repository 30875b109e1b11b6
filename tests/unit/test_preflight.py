"""What stands between a job and the queue besides its rows: memory, and contexts that could not be served."""

from array import array
from pathlib import Path

import msgspec
from tests.training_runs import bench

from smedje.data.counting import RowCounts
from smedje.domain.jobs import JobError
from smedje.modeling.config import read_decoder_config, read_raw_config
from smedje.modeling.tiny_random import write_tiny_phi3
from smedje.objects.store import open_objects
from smedje.services.context import Context
from smedje.services.prediction import predicted_memory, propose
from smedje.services.preflight import _memory, _too_long_for_serving
from smedje.store.database import Database
from smedje.training.memory import held_in_bf16, predicted_bytes, weight_parameters
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
    assert predicted_memory(msgspec.structs.replace(spec, micro_batch_tokens=16_384)) > small
    wide = msgspec.structs.replace(spec.lora, rank=64)
    assert predicted_memory(msgspec.structs.replace(spec, lora=wide)) > small


def test_what_cannot_fit_is_refused(tmp_path: Path, sqlite_database: Database) -> None:
    """A stream of a billion tokens is refused with the machine's memory and what to change."""
    spec = msgspec.structs.replace(bench(tmp_path).spec, micro_batch_tokens=1_000_000_000)
    ctx = Context(database=sqlite_database, objects=open_objects("memory:///"), home=tmp_path)
    found = _memory(ctx, spec)
    assert isinstance(found, JobError)
    assert found.code == "insufficient_memory"


def test_rows_that_are_known_need_less(tmp_path: Path) -> None:
    """Few short rows never fill a stream: their prediction is below the one for whatever the spec allows."""
    spec = bench(tmp_path).spec
    few = RowCounts(tokens=array("I", [20] * 12), trained=array("I", [5] * 12))
    many = RowCounts(tokens=array("I", [400] * 64), trained=array("I", [200] * 64))
    assert predicted_memory(spec, few) < predicted_memory(spec, many) <= predicted_memory(spec)


def test_smaller_streams_are_proposed_first(tmp_path: Path, sqlite_database: Database) -> None:
    """What changes no result comes before a lower limit: with long steps of short rows, micro_batch_tokens alone."""
    spec = msgspec.structs.replace(bench(tmp_path).spec, batch_size=64, micro_batch_tokens=2048)
    rows = RowCounts(tokens=array("I", [400] * 64), trained=array("I", [200] * 64))
    ctx = Context(database=sqlite_database, objects=open_objects("memory:///"), home=tmp_path)
    room = predicted_memory(msgspec.structs.replace(spec, micro_batch_tokens=1024), rows)
    found = propose(ctx, spec, longest=400, rows=rows, memory_bytes=room)
    assert found is not None
    assert found.startswith("With micro_batch_tokens 1024 it needs")


def test_large_bf16_weights_are_counted_as_they_are_held(tmp_path: Path) -> None:
    """Weights whose fp32 would take more than half of the memory stay in the bf16 of their file, and count so."""
    spec = bench(tmp_path).spec
    folder = Path(spec.base_folder)
    raw, config = read_raw_config(folder) | {"torch_dtype": "bfloat16"}, read_decoder_config(folder)
    weights = weight_parameters(config)
    assert held_in_bf16(raw, config, memory_bytes=weights)
    assert not held_in_bf16(raw, config, memory_bytes=weights * 100)
    assert not held_in_bf16(read_raw_config(folder), config, memory_bytes=weights)
    assert predicted_bytes(config, spec) - predicted_bytes(config, spec, weight_bytes=2) == 2 * weights
