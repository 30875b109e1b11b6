"""One line as the training sees it: its tokens, and how much predicting each of them counts."""

from dataclasses import dataclass
from pathlib import Path

from smedje.chat.template import render_examples
from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.parse import parse_lines
from smedje.errors import InvalidData, NotFound


@dataclass(frozen=True)
class TokenView:
    """One token. text: what the id decodes to alone, which may be half a character. weight: 0 is context only."""

    id: int
    text: str
    weight: float


@dataclass(frozen=True)
class ExampleView:
    """One training example. trained: tokens with a weight above 0."""

    tokens: tuple[TokenView, ...]
    trained: int


@dataclass(frozen=True)
class LineView:
    """A line of a file: more than one example where the template needs one for each answer."""

    line: int
    examples: tuple[ExampleView, ...]


def view_line(path: Path, line: int, tokenizer: ChatTokenizer) -> LineView:
    """The examples that training makes of line `line` (from 1), token by token, through the same path.

    Raises NotFound when there is no such line, and InvalidData when it is no example; InvalidRequest when the chat
    template refuses it.
    """
    found = next((parsed for parsed in parse_lines(path) if parsed.line == line), None)
    if found is None:
        raise NotFound(f"The file has no line {line}.", code="row_not_found", param="row")
    if found.example is None:
        problem = found.problems[0]
        raise InvalidData(f"Line {line}: {problem.message} {problem.remedy}", code=problem.code, param="row")
    rendered = render_examples(tokenizer, found.example.to_messages(), tools=found.example.tools)
    return LineView(line, tuple(_view(one.tokens, one.weights, tokenizer) for one in rendered))


def _view(tokens: list[int], weights: list[float], tokenizer: ChatTokenizer) -> ExampleView:
    pairs = zip(tokens, weights, strict=True)
    shown = tuple(TokenView(token, tokenizer.decode([token], skip_special=False), weight) for token, weight in pairs)
    return ExampleView(shown, sum(weight > 0 for weight in weights))
