"""Tiny random models made by transformers, one per family, and the reference logits that it computes for them."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 96
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [1.5 + 0.9 * i for i in range(pairs)],
    }


# name -> (transformers model class, settings beyond SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama3-rope": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE, "head_dim": 16}),
    "llama-biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None, "rms_norm_eps": 1e-5}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 9}),
    "phi3": ("Phi3ForCausalLM", {"num_key_value_heads": 6}),
    "phi3-window": ("Phi3ForCausalLM", {"num_key_value_heads": 6, "sliding_window": 12}),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        {"num_key_value_heads": 6, "original_max_position_embeddings": 32, "rope_parameters": _longrope(4)},
    ),
    "phi4-mini": (
        "Phi3ForCausalLM",
        {
            "head_dim": 8,
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
            "rope_parameters": _longrope(3) | {"partial_rotary_factor": 0.75},
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "sliding_window_pattern": 3},
    ),
}


def make_reference(family: str, folder: Path, *, seed: int = 0) -> Any:
    """Write a random model of the family into `folder` and return transformers' own, in eval mode."""
    import transformers

    class_name, extra = FAMILIES[family]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**copy.deepcopy(SIZES | extra), attn_implementation="eager")
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from the initial values, so that a forgotten norm, bias or scale cannot pass.
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "embed" not in name and "lm_head" not in name:
                parameter.normal_(0.0, 1.2 / parameter.shape[1] ** 0.5)
            else:
                parameter.normal_(0.0, 0.4)
    model.save_pretrained(folder)
    return model


def random_documents(lengths: Sequence[int], *, seed: int = 1) -> list[Tensor]:
    """Token ids of documents of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def flat(documents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and positions of documents laid end to end."""
    return torch.cat(list(documents)), torch.cat([torch.arange(len(document)) for document in documents])


def reference_logits(model: Any, documents: Sequence[Tensor]) -> Tensor:
    """transformers' logits of each document alone, one after the other [T, V]."""
    with torch.no_grad():
        return torch.cat([model(input_ids=document[None]).logits[0] for document in documents])


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference between two tensors."""
    return float((a - b).abs().max())
