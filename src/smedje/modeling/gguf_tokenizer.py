"""Turns the tokenizer inside a GGUF file into tokenizer.json and tokenizer_config.json. Knows tokens, not weights.

GGUF keeps pieces, types, scores or merges, and the name of a pre-tokenizer; the pipeline around them has to be rebuilt
from that name. Getting it wrong gives other ids without any error, so an unknown name is refused.
Source for names: llama.cpp, convert_hf_to_gguf.py and src/llama-vocab.cpp.
"""

from pathlib import Path
from typing import Any

from smedje.errors import UnsupportedField
from smedje.modeling.folder import write_json
from smedje.modeling.gguf_file import GgufFile, broken

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
# What ends a turn, by its text; the file's own end-of-text id is not always the one that chat stops at.
END_OF_TURN = ("<|im_end|>", "<|end|>", "<|eot_id|>", "<end_of_turn>")
# GGUF does not keep this flag. Phi-3's role tokens swallow the white space after them, these tokens do not.
PHI3_KEEPS_SPACE = frozenset({"<unk>", "<s>", "<|endoftext|>"})
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTE_LEVEL_AFTER_SPLIT = BYTE_LEVEL | {"use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def write_gguf_tokenizer(file: GgufFile, folder: Path, *, context_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json. Raises UnsupportedField for a tokenizer that is not known."""
    values = file.values
    kind = values.get("tokenizer.ggml.model")
    tokens = _items(file, "tokens", str)
    types = _items(file, "token_type", int)
    if not tokens or types is None or len(types) != len(tokens):
        raise broken(file.path, "its list of tokens is missing or does not match their types")
    if len(set(tokens)) != len(tokens):
        raise broken(file.path, "its list of tokens has the same text twice")
    if kind == "gpt2":
        tokenizer = _byte_level(file, tokens)
    elif kind == "llama":
        tokenizer = _sentence_piece(file, tokens)
    else:
        raise UnsupportedField(
            f"{file.path.name} has a tokenizer of kind {kind!r}; gpt2 (byte-level BPE) and llama (SentencePiece) are "
            "offered. Pull the model from its hub repository instead.",
            code="unsupported_tokenizer",
            param=file.path.name,
        )
    strips = kind == "llama" and values.get("general.architecture") == "phi3"
    tokenizer["added_tokens"] = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": strips and text not in PHI3_KEEPS_SPACE,
            "normalized": False,
            "special": types[number] != USER_DEFINED,
        }
        for number, text in enumerate(tokens)
        if types[number] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    if _adds_bos(values):
        tokenizer["post_processor"] = _bos_template(tokens, token_id(file, "bos") or 0)
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(file, tokens, context_tokens))


def known_pre_tokenizers() -> dict[str, tuple[dict[str, Any] | None, dict[str, Any]]]:
    """Name of a byte-level pre-tokenizer in GGUF -> its normalizer and pre-tokenizer in tokenizer.json."""
    return {
        "smollm": (None, _sequence(DIGITS, BYTE_LEVEL)),
        "starcoder": (None, _sequence(DIGITS, BYTE_LEVEL)),
        "gpt-2": (None, BYTE_LEVEL),
        "qwen2": ({"type": "NFC"}, _sequence(_split(QWEN2_SPLIT), BYTE_LEVEL_AFTER_SPLIT)),
        "llama-bpe": (None, _sequence(_split(LLAMA3_SPLIT), BYTE_LEVEL_AFTER_SPLIT)),
    }


def _byte_level(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    name = file.values.get("tokenizer.ggml.pre", "default")
    known = known_pre_tokenizers()
    if name not in known:
        raise UnsupportedField(
            f"The GGUF file names the pre-tokenizer {name!r}; {', '.join(sorted(known))} are offered. Another one "
            "would give wrong token ids. Pull the model from its hub repository instead.",
            code="unsupported_tokenizer",
        )
    normalizer, pre_tokenizer = known[name]
    merges = _items(file, "merges", str)
    if merges is None:
        raise broken(file.path, "its tokenizer has no merges")
    model = _bpe(tokens, merges) | {"ignore_merges": name == "llama-bpe"}
    return _pipeline(model, normalizer=normalizer, pre_tokenizer=pre_tokenizer, decoder=BYTE_LEVEL)


def _sentence_piece(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    scores = _items(file, "scores", float)
    if scores is None or len(scores) != len(tokens):
        raise broken(file.path, "its SentencePiece tokens have no scores")
    unknown = tokens[token_id(file, "unknown") or 0]
    model = _bpe(tokens, sentence_piece_merges(tokens, scores))
    model |= {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    prefix = file.values.get("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizers = [{"type": "Prepend", "prepend": "▁"}, replace] if prefix else [replace]
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _pipeline(
        model,
        normalizer={"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
    )


def sentence_piece_merges(tokens: list[str], scores: list[float]) -> list[str]:
    """BPE merges of a SentencePiece BPE model: every split of a piece into two pieces, best score first.

    Splits of one piece keep the order of their left parts' ids. For Llama 2 this gives the published list exactly.
    Source: transformers, convert_slow_tokenizer.generate_merges.
    """
    ids = {text: number for number, text in enumerate(tokens)}
    found: list[tuple[float, str]] = []
    for text, score in zip(tokens, scores, strict=True):
        splits = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in ids and text[i:] in ids]
        splits.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found.extend((-score, f"{left} {right}") for left, right in splits)
    found.sort(key=lambda entry: entry[0])
    return [merge for _, merge in found]


def _bpe(tokens: list[str], merges: list[str]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {text: number for number, text in enumerate(tokens)},
        "merges": merges,
    }


def _pipeline(
    model: dict[str, Any],
    *,
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _adds_bos(values: dict[str, Any]) -> bool:
    # llama.cpp's defaults where the key is missing: SentencePiece adds BOS, byte-level BPE does not.
    default = values.get("tokenizer.ggml.model") == "llama" or values.get("tokenizer.ggml.pre") == "llama-bpe"
    return bool(values.get("tokenizer.ggml.add_bos_token", default)) and "tokenizer.ggml.bos_token_id" in values


def _bos_template(tokens: list[str], bos: int) -> dict[str, Any]:
    text = tokens[bos]
    begin = {"SpecialToken": {"id": text, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": text, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, *second],
        "special_tokens": {text: {"id": text, "ids": [bos], "tokens": [text]}},
    }


def token_id(file: GgufFile, role: str) -> int | None:
    """The id of the bos, eos, padding or unknown token, None when the file names none.

    Raises InvalidRequest when it is not the place of a token.
    """
    number = file.values.get(f"tokenizer.ggml.{role}_token_id")
    count = len(file.values.get("tokenizer.ggml.tokens", ()))
    if number is not None and (type(number) is not int or not 0 <= number < count):
        raise broken(file.path, f"its {role} token id is {number!r} and it has {count:,} tokens")
    return number


def stop_ids(file: GgufFile) -> list[int]:
    """Ids at which an answer ends: the file's end of text, and the control tokens that end a turn."""
    tokens = file.values["tokenizer.ggml.tokens"]
    types = file.values["tokenizer.ggml.token_type"]
    turns = {tokens.index(t) for t in END_OF_TURN if t in tokens and types[tokens.index(t)] == CONTROL}
    eos = token_id(file, "eos")
    return sorted(turns | (set() if eos is None else {eos}))


def _items(file: GgufFile, key: str, kind: type) -> list[Any] | None:
    value = file.values.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, list) and all(type(item) is kind for item in value) else None


def _tokenizer_config(file: GgufFile, tokens: list[str], context_tokens: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "add_bos_token": _adds_bos(file.values),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        # This class reads tokenizer.json as it stands; the named ones rebuild the pipeline and lose the digit split.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for field, role in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = token_id(file, role)
        if number is not None:
            config[f"{field}_token"] = tokens[number]
    if "pad_token" not in config and "eos_token" in config:
        config["pad_token"] = config["eos_token"]
    template = file.values.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config
