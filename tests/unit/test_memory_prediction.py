"""What a run's predicted memory follows: the tokens that are computed, not those that are merely in the rows."""

from array import array
from pathlib import Path

import msgspec
from tests.training_runs import bench

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.counting import count_tokens
from smedje.data.encode import encode_file
from smedje.data.forest import shared_tokens
from smedje.modeling.config import read_decoder_config
from smedje.training.memory import predicted_bytes, stream_sizes
from smedje.training.spec import LoraSpec


def test_a_shared_beginning_counts_once_a_stream(tmp_path: Path) -> None:
    """Eight rows of 400 tokens behind 300 alike are 300 and eight times 99 computed ones; unshared all of them."""
    spec = bench(tmp_path).with_spec(batch_size=8, micro_batch_tokens=4096, threads=1).spec
    rows, labels = [400] * 8, [50] * 8
    together = stream_sizes(spec, rows, labels, shared=300)
    assert (together.tokens, together.labelled, together.turns) == (300 + 8 * 99, 8 * 50, 1)
    apart = stream_sizes(msgspec.structs.replace(spec, share_prefixes=False), rows, labels, shared=300)
    assert (apart.tokens, apart.turns) == (8 * 399 // 2, 2), "two streams are nearer to the usual length than one"
    assert stream_sizes(spec, rows, labels).tokens == 8 * 399 // 2


def test_streams_side_by_side_repeat_the_beginning(tmp_path: Path) -> None:
    """With two cores there are two streams, each with the beginning, where dividing the rest is worth it."""
    spec = bench(tmp_path).with_spec(batch_size=8, micro_batch_tokens=4096, threads=2).spec
    found = stream_sizes(spec, [300] * 8, [50] * 8, shared=100)
    assert (found.streams, found.tokens) == (2, 2 * 100 + 8 * 199)


def test_the_fullest_step_counts_not_the_longest(tmp_path: Path) -> None:
    """A step just above what one turn holds is divided in two; a smaller one that just fills the turn needs more."""
    spec = bench(tmp_path).with_spec(batch_size=4, micro_batch_tokens=1000, threads=1).spec
    assert stream_sizes(spec, [201, 201, 241, 261, 271, 281], [1] * 6).tokens == 1000


def test_bf16_rows_need_about_half(tmp_path: Path) -> None:
    """What is kept of a stream is counted in halves where a job asks for bf16, and not where dropout keeps it whole."""
    place = bench(tmp_path)
    config = read_decoder_config(Path(place.spec.base_folder))

    def grows(lora: LoraSpec) -> int:
        small, large = (place.with_spec(lora=lora, micro_batch_tokens=n).spec for n in (8192, 16_384))
        return predicted_bytes(config, large) - predicted_bytes(config, small)

    assert grows(LoraSpec(precision="bf16")) < grows(LoraSpec()) < grows(LoraSpec(dropout=0.1))
    assert grows(LoraSpec(dropout=0.1)) == grows(LoraSpec(dropout=0.1, precision="bf16"))


def test_counting_finds_what_all_rows_begin_with(tmp_path: Path) -> None:
    """The count without tokens kept is that of the encoded rows; of a single row nothing is shared."""
    place = bench(tmp_path)
    tokenizer = load_chat_tokenizer(Path(place.spec.base_folder))
    path = place.objects.local_path(place.spec.data.training_key, tmp_path / "cache")
    found = count_tokens(path, tokenizer, max_tokens=None).rows
    dataset = encode_file(path, tokenizer, max_tokens=2048)
    assert found.shared == shared_tokens(dataset, range(len(dataset))) > 0
    one = tmp_path / "one.jsonl"
    one.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert count_tokens(one, tokenizer, max_tokens=None).rows.shared == 0
    assert found.tokens == array("I", [dataset.length(row) for row in range(len(dataset))])
