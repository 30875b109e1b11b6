"""Checked chat examples to flat arrays of token ids and weights. Knows one file and one tokenizer; knows no batches."""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from smedje.chat.template import RenderedExample, render_examples
from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.dialogues import DialogueGroups
from smedje.data.parse import ChatExample, read_examples
from smedje.errors import InvalidData, InvalidRequest


@dataclass(frozen=True)
class EncodedDataset:
    """n rows of tokens, one after the other.

    tokens: all ids. weights: as many numbers; weights[i] says how much predicting tokens[i] counts.
    offsets: n + 1 places; row i holds tokens[offsets[i]:offsets[i + 1]]. lines: the 1-based source line of each row.
    groups: a number for each row, equal for rows of one line and for lines of one dialogue (`DialogueGroups`), so that
    a split can keep them on one side.
    """

    tokens: array[int] = field(repr=False, default_factory=lambda: array("I"))
    weights: array[float] = field(repr=False, default_factory=lambda: array("f"))
    offsets: array[int] = field(repr=False, default_factory=lambda: array("Q", [0]))
    lines: array[int] = field(repr=False, default_factory=lambda: array("I"))
    groups: array[int] = field(repr=False, default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.lines)

    def example(self, row: int) -> tuple[array[int], array[float]]:
        """Tokens and weights of one row, each of the row's length."""
        start, end = self.offsets[row], self.offsets[row + 1]
        return self.tokens[start:end], self.weights[start:end]

    def length(self, row: int) -> int:
        """Number of tokens of one row."""
        return self.offsets[row + 1] - self.offsets[row]

    @property
    def num_tokens(self) -> int:
        """Number of all tokens."""
        return len(self.tokens)

    @property
    def num_trained_tokens(self) -> int:
        """Number of tokens with a weight above 0."""
        return sum(1 for weight in self.weights if weight > 0)


def encode_file(path: Path, tokenizer: ChatTokenizer, *, max_tokens: int) -> EncodedDataset:
    """Encode every example of a checked chat file.

    max_tokens: the most tokens an example may have; nothing is ever cut off.
    Raises InvalidData for a line that is no example, that the chat template refuses, or that is too long.
    """
    dataset, dialogues = EncodedDataset(), DialogueGroups()
    numbers: list[int] = []
    for number, example in enumerate(read_examples(path)):
        dialogues.add(example)
        for rendered in _render(example, tokenizer):
            if len(rendered.tokens) > max_tokens:
                raise InvalidData(
                    f"Line {example.line} has {len(rendered.tokens)} tokens; at most {max_tokens} are allowed. "
                    "Shorten or split the conversation.",
                    code="example_too_long",
                )
            dataset.tokens.extend(rendered.tokens)
            same = example.weight == 1.0
            dataset.weights.extend(rendered.weights if same else [w * example.weight for w in rendered.weights])
            dataset.offsets.append(len(dataset.tokens))
            dataset.lines.append(example.line)
            numbers.append(number)
    groups = dialogues.groups()
    dataset.groups.extend(groups[number] for number in numbers)
    return dataset


def conversation_digest(example: ChatExample) -> int:
    """64 bits that tell conversations apart; equal for the same messages and tools, whatever their line."""
    # A text of an example holds no NUL, so no two lists of texts are joined alike.
    texts = "\0".join(message.content or "" for message in example.messages).encode()
    head = digest_head([message.to_dict() for message in example.messages], example.tools)
    return int.from_bytes(hashlib.blake2b(head + texts, digest_size=8).digest(), "little")


def digest_head(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> bytes:
    """Everything of a conversation but its texts, as bytes."""
    silent = [{**message, "content": None if message.get("content", "") is None else ""} for message in messages]
    return msgspec.json.encode([silent, tools], order="deterministic") + b"\0"


def _render(example: ChatExample, tokenizer: ChatTokenizer) -> Iterator[RenderedExample]:
    try:
        yield from render_examples(tokenizer, example.to_messages(), tools=example.tools)
    except InvalidRequest as error:
        raise InvalidData(f"Line {example.line}: {error.message}", code=error.code, param=error.param) from error
