"""One line as the training sees it: its tokens, and how much predicting each of them counts."""

from dataclasses import dataclass
from pathlib import Path

from smedje.chat.template import render_examples, render_prompt
from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.forms import form_of, read_items
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

    A preference pair has two, the better answer first. Of a labelled text the last token is marked: there the label is
    what is learnt. Raises NotFound when there is no such line, and InvalidData when it is no example; InvalidRequest
    when the chat template refuses it.
    """
    form = form_of(path)
    found = next((item for item in read_items(path, form) if item.line == line), None)
    if found is None:
        raise NotFound(f"The file has no line {line}.", code="row_not_found", param="row")
    if found.example is None:
        problem = found.problems[0]
        raise InvalidData(f"Line {line}: {problem.message} {problem.remedy}", code=problem.code, param="row")
    if form == "classification":
        tokens = render_prompt(tokenizer, found.example.to_messages()[:-1])
        return LineView(line, (_view(tokens, [0.0] * (len(tokens) - 1) + [1.0], tokenizer),))
    pair = [found.example] if found.other is None else [found.example, found.other]
    rendered = [row for one in pair for row in render_examples(tokenizer, one.to_messages(), tools=one.tools)]
    return LineView(line, tuple(_view(one.tokens, one.weights, tokenizer) for one in rendered))


def _view(tokens: list[int], weights: list[float], tokenizer: ChatTokenizer) -> ExampleView:
    pairs = zip(tokens, weights, strict=True)
    shown = tuple(TokenView(token, tokenizer.decode([token], skip_special=False), weight) for token, weight in pairs)
    return ExampleView(shown, sum(weight > 0 for weight in weights))
