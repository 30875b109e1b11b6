"""Encoded rows that are kept: used again when nothing that decides them has changed, never otherwise."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.training_runs import Bench, bench, labelled_rows, preference_rows

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.prepared import MOST_BYTES, Sources, clean, forget_rows, keep_rows, read_rows, sources_of
from smedje.training.run import load_rows
from smedje.training.spec import DataSpec, ObjectiveSpec


@pytest.fixture
def place(tmp_path: Path) -> Bench:
    """Twelve rows, a quarter held out."""
    return bench(tmp_path, rows=12)


def kept(place: Bench) -> list[Path]:
    return sorted((place.root / "cache" / "prepared").glob("*.rows"))


def rows_of(place: Bench) -> object:
    tokenizer = load_chat_tokenizer(Path(place.spec.base_folder))
    return load_rows(place.objects, place.spec, tokenizer, cache=place.root / "cache")


def sources(place: Bench) -> Sources:
    tokenizer = load_chat_tokenizer(Path(place.spec.base_folder))
    data = place.root / "objects" / "data" / "train"
    vocabulary = Path(place.spec.base_folder) / "tokenizer.json"
    return sources_of(data, vocabulary, tokenizer, today="2026-01-31", options={"max_tokens": 400})


@pytest.mark.parametrize("kind", ["supervised", "dpo", "classification"])
def test_the_second_run_reads_what_the_first_encoded(place: Bench, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Chat rows, pairs and labelled texts come back equal, from one kept file, without being encoded again."""
    make = {"dpo": preference_rows, "classification": labelled_rows}.get(kind)
    if make is not None:
        place.objects.put("data/train", make(12))
    here = place.with_spec(objective=ObjectiveSpec(kind=kind))  # type: ignore[arg-type]  # one of the three
    with caplog.at_level("INFO", "smedje.training"):
        first = rows_of(here)
        assert not caplog.messages
        assert rows_of(here) == first
        assert caplog.messages == ["12 rows were encoded before"]
    assert len(kept(here)) == 1


def changed_data(place: Bench) -> Bench:
    raw = place.objects.get("data/train")
    place.objects.put("data/train", raw.replace(b"kettle", b"kettlf"))
    return place


def changed_template(place: Bench) -> Bench:
    path = Path(place.spec.base_folder) / "tokenizer_config.json"
    config = msgspec.json.decode(path.read_bytes())
    config["chat_template"] = config["chat_template"].replace("user", "user ", 1) + "{# changed #}"
    path.write_bytes(msgspec.json.encode(config))
    return place


def changed_tokenizer(place: Bench) -> Bench:
    path = Path(place.spec.base_folder) / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    return place


def changed_limit(place: Bench) -> Bench:
    return place.with_spec(data=DataSpec(training_key="data/train", validation_fraction=0.25, max_tokens=399))


@pytest.mark.parametrize("change", [changed_data, changed_template, changed_tokenizer, changed_limit])
def test_whatever_decides_rows_makes_new_ones(place: Bench, change: Callable[[Bench], Bench]) -> None:
    """Other bytes, template, tokenizer or limit: what was kept is not used, and the new rows are kept beside it."""
    rows_of(place)
    rows_of(change(place))
    assert len(kept(place)) == 2


def test_the_date_counts_where_the_template_tells_it(place: Bench) -> None:
    """A template without a date gives the same rows on every day; one that prints the date does not."""
    folder = Path(place.spec.base_folder)
    data, vocabulary = place.root / "objects" / "data" / "train", folder / "tokenizer.json"

    def digests() -> set[str]:
        tokenizer = load_chat_tokenizer(folder)
        days = ("2026-01-31", "2026-02-01")
        return {sources_of(data, vocabulary, tokenizer, today=day, options={}).digest for day in days}

    assert len(digests()) == 1
    path = folder / "tokenizer_config.json"
    config = msgspec.json.decode(path.read_bytes())
    config["chat_template"] = "{{ strftime_now('%d') }}" + config["chat_template"]
    path.write_bytes(msgspec.json.encode(config))
    assert len(digests()) == 2


@pytest.mark.parametrize("place_of_fault", [0, 40, 300, -1])
def test_damage_is_noticed_and_mended(place: Bench, place_of_fault: int) -> None:
    """A flipped bit anywhere, or a file cut short: the rows are encoded again and are right."""
    first = rows_of(place)
    path = kept(place)[0]
    good = path.read_bytes()
    for raw in (bytearray(good), bytearray(good[:-3])):
        raw[place_of_fault] ^= 4
        path.write_bytes(raw)
        assert rows_of(place) == first
        assert kept(place)[0].read_bytes() == good


def test_the_least_recently_used_go_first(place: Bench) -> None:
    """Above the bound the oldest use goes; a use makes a file young again."""
    cache = place.root / "cache"
    rows_of(place)
    rows_of(changed_limit(place))
    first, second = sorted(kept(place), key=lambda path: path.stat().st_mtime_ns)
    os.utime(second, (1000, 1000))
    os.utime(first, (2000, 2000))
    clean(cache, most_bytes=first.stat().st_size)
    assert kept(place) == [first]
    clean(cache, most_bytes=MOST_BYTES)
    assert kept(place) == [first]
    rows_of(place)
    rows_of(changed_limit(place))
    assert all(path.stat().st_mtime > 2000 for path in kept(place))


def test_a_deleted_files_rows_are_forgotten(place: Bench) -> None:
    """Everything made of one data file goes with it, nothing else does."""
    rows_of(place)
    rows_of(changed_limit(place))
    gone = kept(place)
    rows_of(changed_data(place))
    forget_rows(place.root / "cache", gone[0].name.partition("-")[0])
    assert len(kept(place)) == 1
    assert not set(gone) & set(kept(place))


def test_a_folder_that_cannot_be_written_harms_nothing(place: Bench) -> None:
    """Where the cache is a file, or full, runs go on without it."""
    rows = rows_of(place)
    dataset = rows[0].dataset  # type: ignore[index]  # training rows and held-out rows
    blocked = place.root / "blocked"
    blocked.write_bytes(b"")
    keep_rows(blocked, sources(place), dataset)
    assert read_rows(blocked, sources(place)) is None
