"""Adapters in memory."""

import threading
from pathlib import Path

import pytest
from tests.contract.engine_suite import ADAPTERS, tiny_model, write_adapter, write_adapters

from smedje.errors import InvalidRequest, NotFound
from smedje.modeling.served_adapters import ServedAdapter
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import Objects, open_objects
from smedje.serving.adapters import AdapterCache

RED, GREEN, BLUE = ADAPTERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the objects are."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def objects(folder: Path) -> Objects:
    """Object storage over `folder`."""
    return open_objects(folder.as_uri())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> CausalDecoder:
    """A tiny model whose adapters are in storage."""
    model = tiny_model(tmp_path_factory.mktemp("model"))
    write_adapters(model, folder)
    return model


def use(cache: AdapterCache, key: str) -> ServedAdapter:
    """Acquire and release an adapter."""
    cache.acquire(key)
    adapter = cache.get(key)
    cache.release(key)
    return adapter


def test_the_longest_unused_goes_first(model: CausalDecoder, objects: Objects, tmp_path: Path) -> None:
    """With room for two, a third puts out the one that was used longest ago; those that stay are not read again."""
    cache = AdapterCache(model, objects, folder=tmp_path, capacity=2)
    red, green = use(cache, RED), use(cache, GREEN)
    assert use(cache, RED) is red
    use(cache, BLUE)
    assert len(cache) == 2
    assert use(cache, RED) is red
    assert use(cache, GREEN) is not green


def test_an_adapter_in_use_stays(model: CausalDecoder, objects: Objects, tmp_path: Path) -> None:
    """Above the capacity nothing in use is put out; once released it may go."""
    cache = AdapterCache(model, objects, folder=tmp_path, capacity=1)
    for key in ADAPTERS:
        cache.acquire(key)
    assert len({id(cache.get(key)) for key in ADAPTERS}) == len(cache) == 3
    cache.release(BLUE)
    cache.release(RED)
    assert len(cache) == 1
    assert cache.get(GREEN) is not None


def test_an_unknown_adapter_leaves_nothing_behind(model: CausalDecoder, objects: Objects, tmp_path: Path) -> None:
    """NotFound, and it can be loaded once it is there."""
    cache = AdapterCache(model, objects, folder=tmp_path, capacity=2)
    with pytest.raises(NotFound, match="adapters/later") as missing:
        cache.acquire("adapters/later")
    assert missing.value.code == "adapter_not_found"
    assert len(cache) == 0
    write_adapter(model, Path(objects.url.removeprefix("file://")) / "adapters/later", seed=9)
    use(cache, "adapters/later")


def test_an_adapter_of_another_base_is_refused(
    model: CausalDecoder, objects: Objects, folder: Path, tmp_path: Path
) -> None:
    """An adapter whose linears this base model does not have is an invalid request."""
    write_adapter(model, folder / "adapters/odd", seed=1)
    config = folder / "adapters/odd" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    cache = AdapterCache(model, objects, folder=tmp_path, capacity=2)
    with pytest.raises(InvalidRequest):
        cache.acquire("adapters/odd")
    assert len(cache) == 0


def test_many_threads_load_an_adapter_once(model: CausalDecoder, objects: Objects, tmp_path: Path) -> None:
    """Requests that want the same adapter at once share it."""
    cache = AdapterCache(model, objects, folder=tmp_path, capacity=2)
    together, seen = threading.Barrier(6), []

    def want() -> None:
        together.wait()
        cache.acquire(RED)
        seen.append(cache.get(RED))

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert len({id(adapter) for adapter in seen}) == 1


def test_adapters_come_from_storage_that_is_no_folder(model: CausalDecoder, folder: Path, tmp_path: Path) -> None:
    """An adapter in a bucket is copied to the cache folder and is the same."""
    bucket = open_objects("memory:///")
    for path in (folder / RED).iterdir():
        bucket.put(f"{RED}/{path.name}", path.read_bytes())
    fetched = use(AdapterCache(model, bucket, folder=tmp_path / "cache", capacity=1), RED)
    local = use(AdapterCache(model, open_objects(folder.as_uri()), folder=tmp_path, capacity=1), RED)
    assert fetched.factors.keys() == local.factors.keys()
    pairs = ((fetched.factors[site], local.factors[site]) for site in local.factors)
    assert all(ours.equal(theirs) for pair in pairs for ours, theirs in zip(*pair, strict=True))
