"""Tokens of every example of a file, of any form: what is too long, and what a split of the rows would train.

Knows a file and a tokenizer; refuses to know batches. The counts are those of encoding, without keeping the tokens.
"""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smedje.chat.template import render_examples, render_prompt
from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.dialogues import DialogueGroups, hold_out
from smedje.data.forms import Form, Item, form_of, read_items
from smedje.data.preference import prompt_digest
from smedje.data.problems import Problem, ProblemLog, problem_from
from smedje.data.report import TokenStatistics, distribution, histogram
from smedje.data.said import answer, label_counts
from smedje.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """n training rows. tokens, trained: of each row. groups: equal for rows that a split keeps together.

    labels: each row's answer, where the answers are labels, else None. shared: tokens that all rows begin with. More
    rows than lines where a template makes an example of each answer.
    """

    tokens: array[int] = field(default_factory=lambda: array("I"))
    trained: array[int] = field(default_factory=lambda: array("I"))
    groups: Sequence[int] = ()
    labels: Sequence[str] | None = None
    shared: int = 0

    def split(self, *, seed: int, fraction: float) -> tuple[list[int], list[int]]:
        """Training and validation rows, as training itself would split them."""
        return hold_out(len(self.tokens), seed=seed, fraction=fraction, groups=self.groups, labels=self.labels)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What was counted. problems: those that only the tokens or the chat template show."""

    problems: tuple[Problem, ...]
    statistics: TokenStatistics
    rows: RowCounts


def count_tokens(path: Path, tokenizer: ChatTokenizer, *, max_tokens: int | None, form: Form | None = None) -> Counted:
    """Count the tokens of every valid line. max_tokens: the most that an example may have, None for no limit.

    Lines that a check calls an error are left out. Of a pair the limit holds for each answer with its prompt, and its
    tokens are those of both.
    """
    known = form or form_of(path)
    log, tokens, trained = ProblemLog(), array("I"), array("I")
    dialogues = DialogueGroups()
    numbers: list[int] = []
    answers: list[str] = []
    prompts: list[int] = []
    beginning: Sequence[int] | None = None
    for item in read_items(path, known):
        if item.example is None:
            continue
        try:
            found = list(_lengths(item, known, tokenizer))
        except InvalidRequest as error:
            log.add(problem_from(error, line=item.line, remedy="Change the example, or choose another base model."))
            continue
        longest = max(one.longest for one in found)
        if max_tokens is not None and longest > max_tokens:
            log.add(_too_long(item.line, longest, max_tokens, known))
        dialogues.add(item.example)
        answers.append(answer(item.example))
        prompts.append(prompt_digest(item.example))
        for one in found:
            tokens.append(one.tokens)
            trained.append(one.trained)
            numbers.append(len(answers) - 1)
            beginning = one.ids if beginning is None else _common(beginning, one.ids)
    groups = dialogues.groups() if known == "chat" else prompts
    # A classifier's labels are its classes, few or many.
    labels = answers if known == "classification" or (known == "chat" and label_counts(answers)) else None
    rows = RowCounts(
        tokens=tokens,
        trained=trained,
        groups=[groups[number] for number in numbers],
        labels=None if labels is None else [labels[number] for number in numbers],
        shared=len(beginning or ()) if len(numbers) > 1 else 0,
    )
    return Counted(problems=log.kept(), statistics=_statistics(rows, log, max_tokens), rows=rows)


def longest_of(item: Item, form: Form, tokenizer: ChatTokenizer) -> int:
    """Tokens of the longest example that the item makes. Raises InvalidRequest when the chat template refuses it."""
    return max(one.longest for one in _lengths(item, form, tokenizer))


@dataclass(frozen=True)
class _Length:
    """One training row. longest: of what the limit holds for. ids: what other rows may share."""

    tokens: int
    trained: int
    longest: int
    ids: Sequence[int] = ()


def _common(beginning: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
    """What both begin with, without the last of `ids`, which is only ever a target."""
    most = min(len(beginning), len(ids) - 1)
    if beginning[:most] == ids[:most]:
        return beginning[:most]
    return beginning[: next(place for place in range(most) if beginning[place] != ids[place])]


def _lengths(item: Item, form: Form, tokenizer: ChatTokenizer) -> Iterator[_Length]:
    assert item.example is not None, "only an example has tokens"
    if form == "classification":
        # A classifier reads the text up to where an answer would begin; its label is not written.
        ids = render_prompt(tokenizer, item.example.to_messages()[:-1])
        yield _Length(len(ids), 1, len(ids), ids)
        return
    pair = [item.example] if item.other is None else [item.example, item.other]
    found = [render_examples(tokenizer, one.to_messages(), tools=one.tools) for one in pair]
    rows = [
        _Length(len(one.tokens), sum(w > 0 for w in one.weights), len(one.tokens), one.tokens)
        for two in found
        for one in two
    ]
    if item.other is None:
        yield from rows
    else:
        yield _Length(sum(r.tokens for r in rows), sum(r.trained for r in rows), max(r.longest for r in rows))


def _statistics(rows: RowCounts, log: ProblemLog, limit: int | None) -> TokenStatistics:
    tokens, trained = sum(rows.tokens), sum(rows.trained)
    return TokenStatistics(
        examples=len(rows.tokens),
        tokens=tokens,
        trained_tokens=trained,
        trained_share=trained / tokens if tokens else 0.0,
        tokens_per_example=distribution(rows.tokens),
        trained_tokens_per_example=distribution(rows.trained),
        limit=limit,
        problem_codes=dict(log.counts),
        over_limit=log.counts["example_too_long"],
        tokens_over_limit=0 if limit is None else sum(max(0, length - limit) for length in rows.tokens),
        histogram=histogram(rows.tokens),
    )


def _too_long(line: int, length: int, limit: int, form: Form) -> Problem:
    path = {"chat": "$.messages", "classification": "$.text"}.get(form, "$")
    what = "An answer with its prompt" if form == "preference" else "The example"
    message = f"{what} has {length} tokens; at most {limit} are allowed."
    return Problem(line, path, "example_too_long", "error", message, "Shorten or split the conversation.")
