"""A model folder as one GGUF file, laid out as llama.cpp's converter does it. The way back of `convert_gguf.py`.

Knows names, the q/k permutation and tokens; knows no adapters. An architecture, position scaling or tokenizer that the
format has no faithful place for is refused. Sources: llama.cpp convert_hf_to_gguf.py and gguf-py constants.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smedje.errors import UnsupportedField
from smedje.modeling.convert_gguf import ARCHITECTURES, OUTSIDE, Architecture
from smedje.modeling.gguf_tokenizer import UNKNOWN, known_pre_tokenizers

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
F32, F16 = 0, 1
# A token that no merge makes is never the better of two.
LOWEST_SCORE = -1e9


def write_gguf(folder: Path, path: Path, *, half: bool, name: str) -> None:
    """Write the model in `folder` (safetensors, config, tokenizer) as the GGUF file `path`.

    half: matrices as f16, else f32; vectors are always f32. Raises UnsupportedField for what GGUF cannot hold exactly.
    """
    import gguf

    config = json.loads((folder / "config.json").read_bytes())
    kind, architecture = _architecture(config)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_file_type(F16 if half else F32)
    _add_sizes(writer, config, kind)
    _add_tokenizer(writer, folder, vocabulary=config["vocab_size"])
    for target, array in _tensors(folder, architecture, config):
        wide = array.ndim < 2 or not half
        writer.add_tensor(target, array if wide else array.astype("float16"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(config: dict[str, Any]) -> tuple[str, Architecture]:
    kind = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    if kind not in ARCHITECTURES:
        raise UnsupportedField(
            f"Models of type {config['model_type']!r} cannot be written as GGUF; only {', '.join(ARCHITECTURES)} can. "
            "Export the merged folder and convert it with llama.cpp.",
            code="unsupported_architecture",
        )
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) not in ("default", None) or config.get("mlp_bias"):
        raise UnsupportedField(
            "This model scales its rotary positions or has biases that are not written as GGUF here. Export the "
            "merged folder and convert it with llama.cpp.",
            code="unsupported_architecture",
        )
    return kind, ARCHITECTURES[kind]


def _add_sizes(writer: Any, config: dict[str, Any], kind: str) -> None:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 10000.0
    writer.add_rope_freq_base(float(theta))
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config["vocab_size"])
    if head * heads != hidden:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if kind == "phi3" and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _tensors(folder: Path, architecture: Architecture, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    heads = {"attn_q": config["num_attention_heads"]}
    heads["attn_k"] = config.get("num_key_value_heads") or heads["attn_q"]
    outside = {target: source for source, target in OUTSIDE.items()}
    inside = {target: source for source, target in architecture.names.items()}
    with safe_open(folder / "model.safetensors", framework="numpy") as stored:
        for name in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
            if name in outside:
                yield outside[name], stored.get_tensor(name)
                continue
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            part, _, kind = rest.rpartition(".")
            if part not in inside:
                raise UnsupportedField(
                    f"GGUF has no place for the tensor {name} of this model. Export the merged folder instead.",
                    code="unsupported_architecture",
                )
            array = stored.get_tensor(name)
            if architecture.permuted and inside[part] in heads:
                array = _permute(array, heads[inside[part]])
            yield f"blk.{layer}.{inside[part]}.{kind}", array


def _permute(array: Any, heads: int) -> Any:
    # llama.cpp interleaves the two halves of each head's rotary dimensions; Hugging Face keeps them apart.
    half = array.shape[0] // heads // 2
    return array.reshape(heads, 2, half, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _add_tokenizer(writer: Any, folder: Path, *, vocabulary: int) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    model, added = tokenizer["model"], {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    if model.get("type") != "BPE":
        raise _unsupported_tokenizer(f"a tokenizer of type {model.get('type')}")
    ids = {**model["vocab"], **{token["content"]: number for number, token in added.items()}}
    texts = {number: text for text, number in ids.items()}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(max(vocabulary, max(texts) + 1))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, merges))
        steps = json.dumps(tokenizer.get("normalizer")) + json.dumps(tokenizer.get("pre_tokenizer"))
        writer.add_add_space_prefix('"Prepend"' in steps or '"prepend_scheme": "first"' in steps or '"always"' in steps)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types([_type(number, text, texts, added, model) for number, text in enumerate(tokens)])
    for field, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        token = config.get(f"{field}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            add(ids[text])
    writer.add_add_bos_token(_adds_bos(tokenizer))
    template = folder / "chat_template.jinja"
    source = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    if isinstance(source, str):
        writer.add_chat_template(source)


def _type(number: int, text: str, texts: dict[int, str], added: dict[int, Any], model: dict[str, Any]) -> int:
    if number not in texts:
        return UNUSED
    if text == model.get("unk_token"):
        return UNKNOWN
    if number in added:
        return CONTROL if added[number].get("special") else USER_DEFINED
    if model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return BYTE
    return NORMAL


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """A score for each piece that falls with the place of the first merge that makes it: the order of merging."""
    places: dict[str, int] = {}
    for place, merge in enumerate(merges):
        places.setdefault(merge.replace(" ", ""), place)
    return [-float(places[text]) if text in places else LOWEST_SCORE for text in tokens]


def _pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    found = (tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"))
    for name, steps in known_pre_tokenizers().items():
        if steps == found:
            return name
    raise _unsupported_tokenizer("a pre-tokenizer that has no name in GGUF")


def _adds_bos(tokenizer: dict[str, Any]) -> bool:
    processor = tokenizer.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    return any("SpecialToken" in part for step in steps for part in (step.get("single") or [])[:1])


def _unsupported_tokenizer(what: str) -> UnsupportedField:
    return UnsupportedField(
        f"This base model has {what}, which cannot be written as GGUF faithfully. Export the merged folder instead.",
        code="unsupported_tokenizer",
    )
