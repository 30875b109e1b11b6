"""Which files of a published model are taken. Weights come from safetensors only; code and pickles are never taken.

Knows names, not bytes or networks.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smedje.errors import InvalidRequest, UnsupportedField

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER = "tokenizer.json"
SETTINGS = frozenset(
    {
        CONFIG,
        "generation_config.json",
        TOKENIZER,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
    }
)
# Gemma's, Llama's and Qwen's terms ask that they go along with the weights.
LICENCES = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY)(\.(txt|md))?\Z", re.IGNORECASE)
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors\Z")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
# Architectures whose code is in smedje or in transformers: a repository's own code is not needed for them.
KNOWN_ARCHITECTURES = frozenset(
    {
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GemmaForCausalLM",
        "GraniteForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Olmo2ForCausalLM",
        "Phi3ForCausalLM",
        "PhiForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "SmolLM3ForCausalLM",
        "StableLmForCausalLM",
    }
)


def settings_files(names: Iterable[str], *, where: str) -> tuple[str, ...]:
    """The small files to take first: configuration, tokenizer, licence, and the weight index if there is one.

    Raises InvalidRequest when the place holds no safetensors weights, no configuration or no tokenizer.json.
    """
    listed = set(names)
    if SINGLE not in listed and INDEX not in listed:
        pickles = sorted(n for n in listed if n.endswith(PICKLES))
        why = f"only {pickles[0]}, a format that can run code when it is loaded" if pickles else "no model.safetensors"
        raise InvalidRequest(
            f"{where} has {why}. Choose a model that is published as safetensors, or convert it first.",
            code="no_safetensors",
            param="model",
        )
    for needed in (CONFIG, TOKENIZER):
        if needed not in listed:
            raise InvalidRequest(
                f"{where} has no {needed}, so it cannot be used as a base model.",
                code="incomplete_model",
                param="model",
            )
    taken = {n for n in listed if n in SETTINGS or LICENCES.match(n)}
    return tuple(sorted(taken | ({INDEX} & listed if SINGLE not in listed else set())))


def weight_files(folder: Path, *, where: str) -> tuple[str, ...]:
    """The weight files to take, once the small files are in `folder`: the single one, or all that the index names.

    Raises InvalidRequest when the index is malformed or names a file outside the folder.
    """
    index = folder / INDEX
    if not index.is_file():
        return (SINGLE,)
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        shards = []
    bad = [n for n in shards if not isinstance(n, str) or not SHARD.match(n)]
    if not shards or bad:
        raise InvalidRequest(
            f"{INDEX} of {where} does not list its weight files as plain names"
            + (f" (found {bad[0]!r})." if bad else ".")
            + " Nothing was installed.",
            code="invalid_model_file",
            param=INDEX,
        )
    return tuple(shards)


def check_tokenizer(folder: Path, *, where: str) -> None:
    """Raises InvalidRequest when the folder's tokenizer.json cannot be read."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:
        # The library raises nothing more precise.
        raise InvalidRequest(
            f"tokenizer.json of {where} cannot be read: {error}.", code="invalid_model_file", param=TOKENIZER
        ) from None


def check_config(folder: Path, *, where: str) -> dict[str, Any]:
    """The folder's config.json as a value.

    Raises InvalidRequest when it is not JSON, UnsupportedField when the model would need the repository's own code.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise InvalidRequest(f"config.json of {where} is not a JSON object.", code="invalid_model_file", param=CONFIG)
    architectures = config.get("architectures") or []
    if config.get("auto_map") and not KNOWN_ARCHITECTURES.intersection(map(str, architectures)):
        raise UnsupportedField(
            f"{where} needs code from its own repository ({', '.join(map(str, architectures)) or 'no architecture'}), "
            "which smedje never runs. Choose a model of a known architecture.",
            code="remote_code_needed",
            param="model",
        )
    return config
