"""Labelled texts: {"text" or "messages", "label"} a line. To encoded texts with class numbers, and rows of a stream.

The text is shown to the base model as a user message through its chat template, up to where an answer would begin.
Classes are numbered in the order of their names. Refuses to know heads and losses.
"""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from smedje.chat.template import render_prompt
from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.encode import EncodedDataset
from smedje.data.lines import read_lines
from smedje.errors import InvalidData, InvalidRequest

MOST_LABELS = 1000


@dataclass(frozen=True)
class LabelledDataset:
    """n texts with a class each. texts: encoded rows. classes: n numbers into `names`."""

    texts: EncodedDataset
    classes: array[int]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def groups(self) -> array[int]:
        """A number for each text, equal for equal texts, for a split."""
        return self.texts.groups

    def length(self, row: int) -> int:
        """Number of tokens of one text."""
        return self.texts.length(row)


def encode_labelled(
    path: Path, tokenizer: ChatTokenizer, *, max_tokens: int, names: Sequence[str] | None = None
) -> LabelledDataset:
    """Encode every line. names: the classes of the training file, which a validation file must keep to.

    Raises InvalidData for a line that is not a labelled text, is too long, or has a label that is not in `names`.
    """
    texts, labels = EncodedDataset(), []
    for line in read_lines(path):
        if line.blank:
            continue
        messages, label = _read(line.raw or b"", line.number)
        if names is not None and label not in names:
            raise InvalidData(
                f"Line {line.number} has the label {label[:60]!r}, which the training file does not have.",
                code="unknown_label",
            )
        try:
            tokens = render_prompt(tokenizer, messages)
        except InvalidRequest as error:
            raise InvalidData(f"Line {line.number}: {error.message}", code=error.code) from error
        if len(tokens) > max_tokens:
            raise InvalidData(
                f"Line {line.number} has {len(tokens)} tokens; at most {max_tokens} are allowed. Shorten the text.",
                code="example_too_long",
            )
        labels.append(label)
        texts.tokens.extend(tokens)
        texts.weights.extend([0.0] * len(tokens))
        texts.offsets.append(len(texts.tokens))
        texts.lines.append(line.number)
        texts.groups.append(_digest(tokens))
    known = tuple(sorted(set(labels))) if names is None else tuple(names)
    if not 2 <= len(known) <= MOST_LABELS:
        raise InvalidData(f"There are {len(known)} labels; 2 to {MOST_LABELS} are needed.", code="invalid_labels")
    number = {name: place for place, name in enumerate(known)}
    return LabelledDataset(texts, array("q", [number[label] for label in labels]), known)


def _digest(tokens: Sequence[int]) -> int:
    """64 bits that tell token sequences apart, the same in every process."""
    return int.from_bytes(blake2b(array("q", tokens).tobytes(), digest_size=8).digest(), "little")


def class_weights(dataset: LabelledDataset, rows: Sequence[int]) -> tuple[float, ...]:
    """Weights that give every class the same total over these rows: n / (classes * rows of the class)."""
    counts = Counter(dataset.classes[row] for row in rows)
    present = len(counts)
    return tuple(len(rows) / (present * counts[c]) if counts[c] else 0.0 for c in range(len(dataset.names)))


def label_rows(dataset: LabelledDataset, rows: Sequence[int], weights: Sequence[float] | None = None) -> EncodedDataset:
    """These texts, each followed by the number of its class, which alone is learnt: the row of a text's last token is
    the one whose target is the class, whatever lays the rows into a stream.

    weights: how much a row of each class counts, None for 1.
    """
    laid = EncodedDataset()
    for row in rows:
        ids, label = dataset.texts.example(row)[0], dataset.classes[row]
        laid.tokens.extend(ids)
        laid.tokens.append(label)
        laid.weights.extend([0.0] * len(ids))
        laid.weights.append(1.0 if weights is None else weights[label])
        laid.offsets.append(len(laid.tokens))
        laid.lines.append(dataset.texts.lines[row])
        laid.groups.append(dataset.texts.groups[row])
    return laid


def _read(raw: bytes, line: int) -> tuple[list[dict[str, Any]], str]:
    """Messages and label of one line."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidData(f"Line {line} is not valid JSON: {error}.", code="invalid_json") from None
    label = value.get("label") if isinstance(value, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise InvalidData(f"Line {line} has no `label` that is a text.", code="missing_label")
    text, messages = value.get("text"), value.get("messages")
    if isinstance(text, str) and text.strip() and messages is None:
        return [{"role": "user", "content": text}], label
    if text is None and isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        return messages, label
    raise InvalidData(
        f"Line {line} needs either `text` (a text that is not blank) or `messages`, and `label`.", code="missing_text"
    )
