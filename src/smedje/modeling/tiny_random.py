"""Tiny models with random weights, laid out exactly like published ones. For tests and for showing the path.

`write_tiny_llama` and `write_tiny_phi3` make folders that load wherever the real architecture loads, in milliseconds.
With no tokenizer in the folder a byte-level one with the family's special tokens is written, so no network is needed.
Knows shapes and names; knows nothing of training.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smedje.modeling.folder import write_json
from smedje.modeling.phi3_tokenizer import CHAT_TEMPLATE as PHI3_CHAT_TEMPLATE
from smedje.modeling.phi3_tokenizer import END_OF_TEXT, VOCABULARY_SIZE
from smedje.modeling.tensor_file import TensorWriter

CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PHI3_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def write_tiny_llama(
    folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 64, tied: bool = True, vocabulary: int = 320
) -> None:
    """A random LlamaForCausalLM with grouped-query attention (4 heads, 2 key-value heads) and ChatML.

    hidden: width, a multiple of 8. tied: the output head is the embedding. Without a tokenizer.json in the folder a
    byte-level tokenizer of 259 entries is written; `vocabulary` counts the rows of the embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _shared_config(hidden=hidden, layers=layers, vocabulary=vocabulary) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    write_json(folder / "config.json", config)
    _write_weights(folder, config, seed=seed, fused=False)
    if not (folder / "tokenizer.json").exists():
        _write_byte_tokenizer(folder, CHATML_TOKENS, template=CHATML_TEMPLATE, bos="<|im_start|>", eos="<|im_end|>")
        write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})


def write_tiny_phi3(
    folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 64, longrope: bool = False, vocabulary: int = 320
) -> None:
    """A random Phi3ForCausalLM: fused qkv_proj and gate_up_proj, 4 heads, untied head, Phi-3's chat template.

    longrope: rope scaling as in the 128k models, with the short factors in force up to 64 positions and 512 in all.
    Without a tokenizer.json in the folder a byte-level tokenizer of 264 entries is written (stop ids 3, 4 and 6); with
    one, it is taken for the real Phi-3 tokenizer, and `vocabulary` should be 32064.
    """
    folder.mkdir(parents=True, exist_ok=True)
    real = (folder / "tokenizer.json").exists()
    end_of_text = END_OF_TEXT if real else PHI3_TOKENS.index("<|endoftext|>")
    config = _shared_config(hidden=hidden, layers=layers, vocabulary=vocabulary) | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 64 if longrope else 512,
        "sliding_window": None,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
    }
    if longrope:
        half = hidden // 4 // 2
        config["rope_scaling"] = {
            "type": "longrope",
            "short_factor": [1.0 + 0.05 * i for i in range(half)],
            "long_factor": [1.0 + 0.5 * i for i in range(half)],
        }
    write_json(folder / "config.json", config)
    _write_weights(folder, config, seed=seed, fused=True)
    if not real:
        _write_byte_tokenizer(folder, PHI3_TOKENS, template=PHI3_CHAT_TEMPLATE, bos="<s>", eos="<|endoftext|>")
        stops = sorted(PHI3_TOKENS.index(t) for t in ("<|endoftext|>", "<|end|>", "<|assistant|>"))
        generation = {"bos_token_id": 1, "eos_token_id": stops, "pad_token_id": end_of_text}
        write_json(folder / "generation_config.json", generation)


def write_phi3_tiny_random(folder: Path) -> None:
    """The catalog's `phi-3-tiny-random`: a folder that holds the real Phi-3 tokenizer gets random weights, seed 0."""
    assert (folder / "tokenizer.json").exists()
    write_tiny_phi3(folder, vocabulary=VOCABULARY_SIZE)


def _shared_config(*, hidden: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_dropout": 0.0,
        "vocab_size": vocabulary,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _write_weights(folder: Path, config: Mapping[str, Any], *, seed: int, fused: bool) -> None:
    shapes = _phi3_shapes(config) if fused else _llama_shapes(config)
    with TensorWriter(folder / "model.safetensors", shapes) as out:
        for name, array in _random_tensors(shapes, seed=seed):
            out.write(name, array)


def _random_tensors(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> Iterator[tuple[str, Any]]:
    import numpy

    random = numpy.random.default_rng(seed)
    for name, shape in shapes.items():
        if len(shape) == 1:
            # Near one, and not one: a loader that forgets the norm's weight must not pass.
            yield name, 1.0 + 0.1 * random.standard_normal(shape, dtype=numpy.float32)
        else:
            # Wide enough that attention and logits differ visibly between positions.
            scale = numpy.float32(1.0 / math.sqrt(shape[1]))
            yield name, scale * random.standard_normal(shape, dtype=numpy.float32)


def _llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (hidden, hidden),
            layer + "self_attn.k_proj.weight": (narrow, hidden),
            layer + "self_attn.v_proj.weight": (narrow, hidden),
            layer + "self_attn.o_proj.weight": (hidden, hidden),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _phi3_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.qkv_proj.weight": (hidden + 2 * narrow, hidden),
            layer + "self_attn.o_proj.weight": (hidden, hidden),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_up_proj.weight": (2 * inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def _write_byte_tokenizer(folder: Path, tokens: tuple[str, ...], *, template: str, bos: str, eos: str) -> None:
    entries = {text: number for number, text in enumerate((*tokens, *_byte_letters()))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": text, **flags} for number, text in enumerate(tokens)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": entries,
        "merges": [],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    settings = {
        "add_bos_token": False,
        "bos_token": bos,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": 512,
        "pad_token": eos,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", settings)


def _byte_letters() -> list[str]:
    """The 256 printable letters that byte-level BPE writes bytes as. Source: GPT-2's bytes_to_unicode."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]
