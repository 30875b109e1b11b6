"""Converts a GGUF model into an ordinary fp32 folder: safetensors, config.json, tokenizer and generation settings.

Only the architectures whose tensors can be mapped one to one are offered. Works tensor by tensor, so memory stays at
the size of the largest one. Knows names, shapes and the q/k permutation; knows nothing of where the file came from.
Sources: llama.cpp convert_hf_to_gguf.py and gguf-py constants; transformers modeling_gguf_pytorch_utils.py.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smedje.errors import UnsupportedField
from smedje.modeling.folder import write_json
from smedje.modeling.gguf_file import GgufFile, GgufTensor, broken, read_gguf, read_tensor
from smedje.modeling.gguf_tokenizer import stop_ids, token_id, write_gguf_tokenizer
from smedje.modeling.sources.progress import PullProgress
from smedje.modeling.tensor_file import TensorWriter

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
SHARED = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
SHARED |= {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
SPLIT = SHARED | {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
SPLIT |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
FUSED = SHARED | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
# Read into config.json, or recomputed from it.
ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture maps. permuted: llama.cpp stores q and k rows in the order of its own rotary layout."""

    class_name: str
    model_type: str
    names: dict[str, str]
    permuted: bool = False


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", SPLIT, permuted=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", SPLIT),
    "phi3": Architecture("Phi3ForCausalLM", "phi3", FUSED),
}


def convert_gguf(path: Path, folder: Path) -> Iterator[PullProgress]:
    """Write the model in `path` into `folder` as model.safetensors (fp32), config.json, tokenizer and generation files.

    Raises InvalidRequest for a damaged file and UnsupportedField for an architecture or tokenizer that is not offered.
    """
    file = read_gguf(path)
    architecture = _architecture(file)
    config = _config(file, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf_tokenizer(file, folder, context_tokens=config["max_position_embeddings"])
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _generation_config(config, stop_ids(file)))
    named = {_target_name(file, architecture, t): t for t in file.tensors.values() if t.name not in ROPE_TENSORS}
    _check_shapes(file, config, named)
    shapes = {name: tensor.shape for name, tensor in named.items()}
    total = sum(4 * math.prod(shape) for shape in shapes.values())
    done = 0
    with TensorWriter(folder / "model.safetensors", shapes) as out:
        for name, tensor in named.items():
            out.write(name, _weight(file, architecture, config, tensor))
            done += 4 * math.prod(tensor.shape)
            yield PullProgress(stage="converting", file=path.name, bytes_done=done, bytes_total=total)


def _architecture(file: GgufFile) -> Architecture:
    name = file.values.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedField(
            f"{file.path.name} holds a model of architecture {name!r}; {', '.join(sorted(ARCHITECTURES))} can be "
            "converted from GGUF. Pull the model from its hub repository instead.",
            code="unsupported_architecture",
            param=file.path.name,
        )
    if file.values.get(f"{name}.expert_count", 0):
        raise UnsupportedField(
            f"{file.path.name} is a mixture of experts, which cannot be converted from GGUF. Choose a dense model.",
            code="unsupported_architecture",
            param=file.path.name,
        )
    parts = file.values.get("split.count", 0)
    if parts and parts != 1:
        raise UnsupportedField(
            f"{file.path.name} is one part of {parts}. Join the parts first, with llama-gguf-split --merge.",
            code="unsupported_architecture",
            param=file.path.name,
        )
    return ARCHITECTURES[name]


def _config(file: GgufFile, architecture: Architecture) -> dict[str, Any]:
    values, prefix = file.values, file.values["general.architecture"]
    hidden = _number(file, "embedding_length")
    heads = _number(file, "attention.head_count")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise broken(file.path, "it has no token embedding")
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_hidden_layers": _number(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, "attention.head_count_kv", default=heads),
        "max_position_embeddings": _number(file, "context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": _real(file, "attention.layer_norm_rms_epsilon", default=1e-5),
        "rope_theta": _real(file, "rope.freq_base", default=10000.0),
        "rope_scaling": None,
        "attention_dropout": 0.0,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    head = _number(file, "attention.key_length", default=max(hidden // heads, 1))
    if architecture.model_type == "llama":
        config |= {"head_dim": head, "attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": False}
    elif head * heads != hidden:
        raise _unsupported_rope(file, f"heads of width {head}")
    if architecture.model_type == "phi3":
        config["original_max_position_embeddings"] = config["max_position_embeddings"]
        config["sliding_window"] = values.get(f"{prefix}.attention.sliding_window") or None
    scaling = values.get(f"{prefix}.rope.scaling.type", "none")
    if scaling not in ("none", "") or ROPE_TENSORS & file.tensors.keys():
        raise _unsupported_rope(file, f"scaled rotary positions ({scaling})")
    for field, role in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{field}_token_id"] = token_id(file, role)
    if config["pad_token_id"] is None:
        config["pad_token_id"] = config["eos_token_id"]
    return config


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF keeps 1e-5 as 9.999999747378752e-06."""
    packed = struct.pack("<f", value)
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if struct.pack("<f", float(text)) == packed:
            return float(text)
    return value


def _generation_config(config: dict[str, Any], stops: list[int]) -> dict[str, Any]:
    found = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": stops if len(stops) > 1 else config["eos_token_id"],
    }
    found["pad_token_id"] = config["pad_token_id"]
    return {key: value for key, value in found.items() if value is not None}


def _number(file: GgufFile, key: str, *, default: int | None = None) -> int:
    # A million is far above any real size and far below what would hurt to count to.
    key = f"{file.values['general.architecture']}.{key}"
    value = file.values.get(key, default)
    if type(value) is not int or not 0 < value <= 1 << 20:
        raise broken(file.path, f"its {key} is {value!r}, not a positive whole number")
    return value


def _real(file: GgufFile, key: str, *, default: float) -> float:
    key = f"{file.values['general.architecture']}.{key}"
    value = file.values.get(key, default)
    if type(value) is not float or not 0 < value < 1e12:
        raise broken(file.path, f"its {key} is {value!r}, not a positive number")
    return shortest(value)


def _target_name(file: GgufFile, architecture: Architecture, tensor: GgufTensor) -> str:
    if tensor.name in OUTSIDE:
        return OUTSIDE[tensor.name]
    match tensor.name.split("."):
        case ["blk", layer, part, ("weight" | "bias") as kind] if layer.isdigit() and part in architecture.names:
            return f"model.layers.{int(layer)}.{architecture.names[part]}.{kind}"
    raise UnsupportedField(
        f"{file.path.name} has a tensor {tensor.name!r} that {architecture.class_name} has no place for. "
        "Pull the model from its hub repository instead.",
        code="unsupported_architecture",
        param=file.path.name,
    )


def _check_shapes(file: GgufFile, config: dict[str, Any], named: dict[str, GgufTensor]) -> None:
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    wide, narrow = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    expected: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (wide, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.qkv_proj": (wide + 2 * narrow, hidden),
        "self_attn.o_proj": (hidden, wide),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    parts = ARCHITECTURES[file.values["general.architecture"]].names.values()
    if layers * len(parts) > len(named):
        raise broken(file.path, f"it claims {layers:,} layers and has {len(named):,} tensors")
    for name in [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in parts] + ["model.norm.weight"]:
        if name not in named:
            raise broken(file.path, f"the tensor for {name} is missing")
    for name, tensor in named.items():
        part = name.removeprefix("model.layers.").partition(".")[2].rpartition(".")[0]
        want = expected.get(part, (hidden,) if name == "model.norm.weight" else (config["vocab_size"], hidden))
        want = want[:1] if name.endswith(".bias") else want
        if tensor.shape != want:
            raise broken(file.path, f"the tensor {tensor.name!r} has the shape {tensor.shape}, expected {want}")


def _weight(file: GgufFile, architecture: Architecture, config: dict[str, Any], tensor: GgufTensor) -> Any:
    array = read_tensor(file, tensor)
    if architecture.permuted and ".attn_q." in tensor.name:
        return _unpermute(array, config["num_attention_heads"])
    if architecture.permuted and ".attn_k." in tensor.name:
        return _unpermute(array, config["num_key_value_heads"])
    return array


def _unpermute(array: Any, heads: int) -> Any:
    # llama.cpp interleaves the two halves of each head's rotary dimensions; Hugging Face keeps them apart.
    half = array.shape[0] // heads // 2
    return array.reshape(heads, half, 2, *array.shape[1:]).swapaxes(2, 1).reshape(array.shape)


def _unsupported_rope(file: GgufFile, what: str) -> UnsupportedField:
    return UnsupportedField(
        f"{file.path.name} has {what}, which cannot be converted from GGUF faithfully. Pull the model from its hub "
        "repository instead.",
        code="unsupported_architecture",
        param=file.path.name,
    )
