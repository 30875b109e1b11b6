"""The tokenizer of an installed base model: text to ids and back, and the ids that end an answer. No torch.

Knows the files of a model folder that concern text. Refuses to know messages (template.py) and weights.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from smedje.chat.calls import GENERIC, CallForm
from smedje.chat.control_tokens import MARK, reader_of_marks, spellings
from smedje.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from smedje.chat.jinja_template import ChatTemplate

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template.

    bos, eos, unk: the special tokens as text, None where the model has none.
    stop_ids: every id that ends an answer, at least one, without repetition: the generation config's, the tokenizer's
    and the model config's end tokens, and the token that the template itself puts after an answer.
    eos_id: appended to a training answer when the template ends it with none of `stop_ids`.
    """

    tokenizer: "Tokenizer" = field(repr=False)
    template: "ChatTemplate" = field(repr=False)
    bos: str | None
    eos: str | None
    unk: str | None
    stop_ids: tuple[int, ...]
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; no token is added, and special tokens spelled out become their ids unless they are marked."""
        reader = self._reader_of_marks if MARK in text else self.tokenizer
        ids: list[int] = reader.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`, without special tokens unless `skip_special` is False."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def raw_bytes(self, number: int) -> bytes | None:
        """The bytes that a token stands for where they are a piece of a character, None where its kind is not known."""
        piece = self.tokenizer.id_to_token(number) or ""
        if single := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(single[1], 16)])
        known = _byte_letters() if self._writes_bytes_as_letters else {}
        return bytes(known[letter] for letter in piece) if piece and all(letter in known for letter in piece) else None

    @property
    def vocabulary_size(self) -> int:
        """Number of ids the tokenizer knows, added tokens included; the model's table may be padded beyond it."""
        size: int = self.tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    @cached_property
    def added_tokens(self) -> re.Pattern[str]:
        """Finds the tokens that cut a text before anything else is looked at; nothing where there are none."""
        texts = sorted((token.content for token in self.tokenizer.get_added_tokens_decoder().values()), key=len)
        return re.compile("|".join(re.escape(text) for text in reversed(texts)) or r"(?!)")

    @cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Finds the spellings of control tokens, which callers may not smuggle into a prompt."""
        return spellings(self.tokenizer, self.stop_ids)

    @cached_property
    def _writes_bytes_as_letters(self) -> bool:
        decoder = self.tokenizer.decoder
        return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()

    @cached_property
    def _reader_of_marks(self) -> "Tokenizer":
        return reader_of_marks(self.tokenizer)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out."""
        return frozenset(i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def stop_strings(self) -> tuple[str, ...]:
        """The texts that become one of `stop_ids` wherever they stand."""
        added = self.tokenizer.get_added_tokens_decoder()
        return tuple(added[number].content for number in self.stop_ids if number in added)

    @cached_property
    def call_form(self) -> CallForm:
        """How calls of tools are written: the template's own way where it can be read back from decoded text."""
        form = self.template.call_form
        if form is None or not self.template.knows_tools:
            return GENERIC
        written = form.opening + form.middle + form.between + form.closing
        return GENERIC if self.control_tokens.search(written) else form

    @cached_property
    def prepends_space(self) -> bool:
        """Whether encoding a text on its own puts a space before it, as Llama 2's and Phi-3's tokenizers do."""
        return self.encode("x") != self.encode("\nx")[len(self.encode("\n")) :]


def load_chat_tokenizer(folder: Path, *, today: date | None = None) -> ChatTokenizer:
    """Read the tokenizer, the chat template and the end tokens of the installed base model in `folder`.

    today: the date told to templates that print one; pass a run's own date to get the same tokens on every day.
    Raises Unavailable when there is no tokenizer, InvalidRequest (`no_chat_template`) when there is no chat template.
    """
    # Imported here and where a tokenizer is made: Jinja and the tokenizers' library take 6 MB of a process that only
    # takes files in or asks for states.
    from smedje.chat.jinja_template import compile_chat_template

    tokenizer = _load_tokenizer(folder / "tokenizer.json")
    config = _read_json(folder / "tokenizer_config.json")
    model_config = _read_json(folder / "config.json")
    ends = _as_ids(_read_json(folder / "generation_config.json").get("eos_token_id"))
    model_ends = _as_ids(model_config.get("eos_token_id")) or _as_ids(
        _as_object(model_config.get("text_config")).get("eos_token_id")
    )
    variables = _special_tokens(config)
    _default_token(variables, "eos_token", tokenizer, (*ends, *model_ends))
    _default_token(variables, "bos_token", tokenizer, _as_ids(model_config.get("bos_token_id")))
    template = compile_chat_template(_template_source(folder, config), variables=variables, today=today)

    eos_id = tokenizer.token_to_id(variables.get("eos_token", ""))
    wanted = (
        *ends,
        *([] if eos_id is None else [eos_id]),
        *model_ends,
        *_turn_end_ids(tokenizer, template.end_of_turn),
    )
    stop_ids = tuple(dict.fromkeys(number for number in wanted if tokenizer.id_to_token(number) is not None))
    if not stop_ids:
        raise InvalidRequest(
            f"The base model in {folder} names no token that ends an answer. "
            "Set eos_token in its tokenizer_config.json or eos_token_id in its generation_config.json.",
            code="no_end_token",
        )
    return ChatTokenizer(
        tokenizer=tokenizer,
        template=template,
        bos=variables.get("bos_token"),
        eos=variables.get("eos_token"),
        unk=variables.get("unk_token"),
        stop_ids=stop_ids,
        eos_id=stop_ids[0] if eos_id is None else eos_id,
    )


@cache
def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [number for number in range(256) if number not in printable]
    return {chr(number): number for number in printable} | {chr(256 + n): number for n, number in enumerate(others)}


def _load_tokenizer(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    if not path.is_file():
        raise Unavailable(
            f"There is no tokenizer at {path}. Pull the base model again.", code="tokenizer_not_found", param="model"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise Unavailable(
            f"The tokenizer at {path} cannot be read: {error}. Pull the base model again.",
            code="tokenizer_invalid",
            param="model",
        ) from error
    # Some published tokenizers carry a truncation length from another use; it would cut examples without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return _as_object(msgspec.json.decode(path.read_bytes()))
    except msgspec.DecodeError as error:
        raise Unavailable(
            f"{path} is not valid JSON: {error}. Pull the base model again.", code="model_files_invalid", param="model"
        ) from error


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(number for number in values if isinstance(number, int) and not isinstance(number, bool))


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The `*_token` entries, each a text or an object with `content`."""
    found = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found


def _default_token(variables: dict[str, str], key: str, tokenizer: "Tokenizer", ids: Sequence[int]) -> None:
    text = tokenizer.id_to_token(ids[0]) if ids else None
    if key not in variables and text is not None:
        variables[key] = text


def _template_source(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # the older form: a list of named templates
        named = {_as_object(entry).get("name"): _as_object(entry).get("template") for entry in source}
        source = named.get("default")
    if not isinstance(source, str) or not source.strip():
        raise InvalidRequest(
            f"The base model {folder.name} has no chat template, so messages cannot be turned into its tokens. "
            "Choose an instruction-tuned model, or put a chat_template.jinja into its folder.",
            code="no_chat_template",
            param="model",
        )
    return source


def _turn_end_ids(tokenizer: "Tokenizer", after: str) -> tuple[int, ...]:
    """The added token that `after` begins with: models made from GGUF files often name only the end of text."""
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    found = max((text for text in added if after.startswith(text)), key=len, default=None)
    return () if found is None else (added[found],)
