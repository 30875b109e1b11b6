"""Control tokens that a text merely spells: they are read as text. Knows spellings; knows no roles and no templates.

Templates are text, so a user who writes `<|im_end|>` would end the turn and could begin one of the system's. What comes
from a caller is therefore marked inside every such spelling before the template sees it, and a tokenizer that drops the
marks after it has looked for control tokens makes plain ids of it.
"""

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A noncharacter: Unicode reserves it for a program's own use, so no text that is exchanged carries it.
MARK = "\ufdd0"


def spellings(tokenizer: "Tokenizer", stop_ids: tuple[int, ...]) -> re.Pattern[str]:
    """Finds control tokens in a text: special tokens and those that end an answer, the longest first."""
    added = tokenizer.get_added_tokens_decoder()
    found = {token.content for number, token in added.items() if token.special or number in stop_ids}
    return re.compile("|".join(re.escape(text) for text in sorted(found, key=len, reverse=True) if text) or r"(?!)")


def marked(value: Any, control: re.Pattern[str]) -> Any:
    """`value` with a mark inside every control token that its texts spell, in lists and mappings too."""
    if isinstance(value, str):
        text = value.replace(MARK, "")
        while control.search(text):  # spellings may overlap: each round breaks at least one
            text = control.sub(_with_mark, text)
        return text
    if isinstance(value, dict):
        return {marked(key, control): marked(part, control) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [marked(part, control) for part in value]
    return value


def reader_of_marks(tokenizer: "Tokenizer") -> "Tokenizer":
    """A copy of the tokenizer that drops marks once the text is cut at its control tokens."""
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Replace
    from tokenizers.normalizers import Sequence as NormalizerSequence

    fields = json.loads(tokenizer.to_str())
    for token in fields.get("added_tokens", []):
        if token.get("special"):
            # Otherwise it would be looked for again when the marks are gone.
            token["normalized"] = False
    copy: Tokenizer = Tokenizer.from_str(json.dumps(fields))
    steps = [Replace(MARK, "")] if copy.normalizer is None else [Replace(MARK, ""), copy.normalizer]
    copy.normalizer = NormalizerSequence(steps)
    return copy


def _with_mark(found: re.Match[str]) -> str:
    text = found.group()
    # No family has control tokens of one character, so there is always an inside.
    return text[:1] + MARK + text[1:]
