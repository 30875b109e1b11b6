"""Tiny model folders with real chat templates and tokenizers of the three kinds in use; no weights."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEMPLATES = Path(__file__).parent.parent / "samples" / "templates"

CORPUS = [
    "Hello, how are you today? I am fine, thank you.",
    "My parcel is late and the tracking page says nothing.",
    "  def f(x):\n    return x + 1\n\n\nprint(f(12))",
    "system user assistant model INST Blåbærgrød på 19 øre, 東京 🙂",
]

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

# template -> kind of tokenizer, special tokens, eos, eos_token_id texts of the generation config
FAMILIES: dict[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "smollm2": ("bytes", CHATML, "<|im_end|>", ()),
    "qwen-2.5": ("lines", CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    "qwen-3": ("lines", CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    "llama-3.2": (
        "lines",
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        "<|eot_id|>",
        ("<|end_of_text|>", "<|eot_id|>"),
    ),
    "phi-3": (
        "prefix",
        ("<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        "<|endoftext|>",
        ("<|endoftext|>", "<|assistant|>", "<|end|>"),
    ),
    "phi-4-mini": (
        "lines",
        ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|tool|>", "<|/tool|>"),
        "<|endoftext|>",
        (),
    ),
    "gemma-2": ("plain", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", ("<eos>", "<end_of_turn>")),
    "mistral": ("prefix", ("<s>", "</s>"), "</s>", ("</s>",)),
    "deepseek-r1": (
        "lines",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        (),
    ),
    "plain": ("prefix", ("<s>", "</s>"), "</s>", ()),
}

FAMILY_NAMES = tuple(FAMILIES)


def write_model_folder(folder: Path, family: str) -> Path:
    """Write the text files of an installed base model of `family` into `folder`."""
    kind, special, eos, ends = FAMILIES[family]
    tokenizer = {"bytes": gpt_2_like, "lines": llama_3_like, "prefix": llama_2_like, "plain": gemma_like}[kind](special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    bos = special[0] if special[0] in {"<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>"} else None
    config = {"eos_token": eos, "bos_token": bos, "chat_template": (TEMPLATES / f"{family}.jinja").read_text()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "none"}))
    if ends:
        ids = [tokenizer.token_to_id(text) for text in ends]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder


def gpt_2_like(special: tuple[str, ...]) -> Tokenizer:
    """Every byte is a letter; GPT-2's split, by which the last line break before a word stands alone (SmolLM)."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), special)


def llama_3_like(special: tuple[str, ...]) -> Tokenizer:
    """Every byte is a letter; line breaks stay together (Llama 3, Qwen, Phi-4)."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(pre_tokenizers.Sequence([split, letters]), special)


def _byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer, special: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def llama_2_like(special: tuple[str, ...]) -> Tokenizer:
    """SentencePiece's kind with a space put before every text, bytes as a fallback (Llama 2, Phi-3)."""
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = _with_byte_fallback(prepend)
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    eats_space = [text for text in special if text.startswith("<|") and text != "<|endoftext|>"]
    tokenizer.add_special_tokens([text for text in special if text not in eats_space])
    tokenizer.add_special_tokens([AddedToken(text, rstrip=True, special=True) for text in eats_space])
    return tokenizer


def gemma_like(special: tuple[str, ...]) -> Tokenizer:
    """SentencePiece's kind without the space before (Gemma)."""
    tokenizer = _with_byte_fallback(normalizers.Replace(" ", "▁"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _with_byte_fallback(normalizer: normalizers.Normalizer) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    letters = [letter for letter in CORPUS[0] + CORPUS[1] + CORPUS[2] if letter != "\n"]
    trainer = trainers.BpeTrainer(vocab_size=200, initial_alphabet=letters, show_progress=False, limit_alphabet=90)
    trained.train_from_iterator(CORPUS[:2], trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for piece in model["vocab"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    return tokenizer
