"""Preference files: one prompt and two answers a line, the better one named. To checks, and to encoded pairs.

Both spellings are read: `preferred_output` / `non_preferred_output` of OpenAI's guide and `preferred_completion` /
`non_preferred_completion` of its schema. The conversation's own rules are those of chat files (rules.py), applied to
the prompt with each answer. Refuses to know batches and losses.
"""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from smedje.chat.template import render_examples
from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.encode import EncodedDataset, conversation_digest
from smedje.data.lines import Line, read_lines
from smedje.data.parse import ChatExample, parse_line
from smedje.data.problems import Problem, ProblemLog
from smedje.data.report import Report, Statistics, distribution
from smedje.errors import InvalidData, InvalidRequest

SPELLINGS = (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion"))
PROMPT_KEYS = ("messages", "tools", "parallel_tool_calls")
FEWEST_EXAMPLES = 10
_FORM = 'Write {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}.'


@dataclass(frozen=True)
class Pair:
    """The same prompt with the better answer and with the other one; only the last message of each is trained."""

    line: int
    preferred: ChatExample
    other: ChatExample


@dataclass(frozen=True)
class PairLine:
    """What a line turned out to be. pair is None when a problem is an error."""

    line: int
    pair: Pair | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class PreferenceDataset:
    """n pairs. answers: 2n rows, row 2i the preferred and row 2i + 1 the other answer of pair i, with its prompt.

    groups: a number for each pair, equal for equal prompts, so that a split keeps them on one side.
    """

    answers: EncodedDataset
    groups: array[int]

    def __len__(self) -> int:
        return len(self.groups)

    def length(self, pair: int) -> int:
        """Number of tokens of both answers with their prompts."""
        return self.answers.length(2 * pair) + self.answers.length(2 * pair + 1)


def is_preference_file(path: Path) -> bool:
    """Whether the first line that is a JSON object looks like a preference pair."""
    for line in read_lines(path):
        if not line.blank and line.raw is not None:
            try:
                value = msgspec.json.decode(line.raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return False
            known = {"input", *(key for pair in SPELLINGS for key in pair)}
            return isinstance(value, dict) and "messages" not in value and bool(known & value.keys())
    return False


def parse_pairs(path: Path) -> Iterator[PairLine]:
    """Every line of a file with its pair or its problems."""
    for line in read_lines(path):
        yield parse_pair(line)


def validate_preferences(path: Path) -> Report:
    """Every problem of a preference file, and its statistics. Roles and prompts are counted with the better answer."""
    log, examples, valid = ProblemLog(), 0, []
    first: dict[tuple[int, int], int] = {}
    for parsed in parse_pairs(path):
        for problem in parsed.problems:
            log.add(problem)
        examples += not any(problem.code == "blank_line" for problem in parsed.problems)
        if parsed.pair is not None:
            valid.append(parsed.pair.preferred)
            both = conversation_digest(parsed.pair.preferred), conversation_digest(parsed.pair.other)
            earlier = first.setdefault(both, parsed.line)
            if earlier != parsed.line:
                message = f"The example is the same as line {earlier}."
                log.add(Problem(parsed.line, "$", "duplicate_example", "warning", message, "Remove the copy."))
    if examples < FEWEST_EXAMPLES:
        code = "invalid_n_examples" if examples else "empty_file"
        message = f"Training file has {examples} example(s), but must have at least {FEWEST_EXAMPLES} examples."
        log.add(Problem(0, "$", code, "error", message, "Add more preference pairs."))
    return Report(log.kept(), statistics_of(valid, log, examples=examples, size=path.stat().st_size))


def statistics_of(valid: Sequence[ChatExample], log: ProblemLog, *, examples: int, size: int) -> Statistics:
    """The statistics of a file whose valid lines are all in memory. size: of the file, in bytes."""
    roles = Counter(message.role for example in valid for message in example.messages)
    return Statistics(
        examples=examples,
        valid_examples=len(valid),
        bytes=size,
        messages_by_role=dict(roles),
        messages_per_example=distribution(array("I", [len(example.messages) for example in valid])),
        user_characters=distribution(_characters(valid, "user")),
        assistant_characters=distribution(_characters(valid, "assistant")),
        system_prompt_share=sum(e.messages[0].role in ("system", "developer") for e in valid) / max(1, len(valid)),
        duplicate_examples=log.counts["duplicate_example"],
        errors=log.errors,
        warnings=log.warnings,
        problem_codes=dict(log.counts),
    )


def encode_pairs(path: Path, tokenizer: ChatTokenizer, *, max_tokens: int) -> PreferenceDataset:
    """Encode every pair of a checked file; max_tokens holds for each answer with its prompt.

    Raises InvalidData for a line that is no pair, that the chat template refuses, or that is too long.
    """
    answers, groups = EncodedDataset(), array("Q")
    for parsed in parse_pairs(path):
        errors = [problem for problem in parsed.problems if problem.severity == "error"]
        if errors:
            raise InvalidData(f"Line {parsed.line}: {errors[0].message} {errors[0].remedy}", code=errors[0].code)
        if parsed.pair is None:
            continue
        groups.append(prompt_digest(parsed.pair.preferred))
        for example in (parsed.pair.preferred, parsed.pair.other):
            try:
                tokens, weights = _render(tokenizer, example)
            except InvalidRequest as error:
                raise InvalidData(f"Line {parsed.line}: {error.message}", code=error.code) from error
            if len(tokens) > max_tokens:
                raise InvalidData(f"Line {parsed.line}: {_too_long(len(tokens), max_tokens)}", code="example_too_long")
            answers.tokens.extend(tokens)
            answers.weights.extend(weights)
            answers.offsets.append(len(answers.tokens))
            answers.lines.append(parsed.line)
            answers.groups.append(groups[-1])
    return PreferenceDataset(answers, groups)


def _render(tokenizer: ChatTokenizer, example: ChatExample) -> tuple[list[int], list[float]]:
    """One example: with a single trained message the template never makes more."""
    (rendered,) = render_examples(tokenizer, example.to_messages(), tools=example.tools)
    return list(rendered.tokens), list(rendered.weights)


def _too_long(length: int, limit: int) -> str:
    return f"An answer with its prompt has {length} tokens; at most {limit} are allowed."


def prompt_digest(example: ChatExample) -> int:
    """64 bits that are equal for examples that differ in their last message alone."""
    body = msgspec.json.encode([example.to_messages()[:-1], example.tools], order="deterministic")
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little")


def _characters(examples: Sequence[ChatExample], role: str) -> array[int]:
    return array("I", [len(m.content or "") for e in examples for m in e.messages if m.role == role])


def parse_pair(line: Line) -> PairLine:
    """What one line is: its pair, or its problems."""
    raw = line.raw or b""
    if line.blank:
        blank = Problem(line.number, "$", "blank_line", "warning", "The line is blank.", "Remove it.")
        return PairLine(line.number, None, (blank,))
    try:
        value = msgspec.json.decode(raw) if line.raw is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The reader of chat files tells what is wrong with the JSON and where.
        return PairLine(line.number, None, parse_line(raw, line.number).problems)
    problems = [] if line.raw is not None else [_error(line, "$", "line_too_large", "The line is too long.")]
    found = _pair(value, line, problems) if not problems else None
    errors = any(problem.severity == "error" for problem in problems)
    return PairLine(line.number, None if errors else found, tuple(problems))


def _pair(value: Any, line: Line, problems: list[Problem]) -> Pair | None:
    """The pair of a decoded line; what is wrong with it goes into `problems`."""
    if not isinstance(value, dict):
        problems.append(_error(line, "$", "data_type", "The line is not a JSON object."))
        return None
    prompt = value.get("input")
    if not isinstance(prompt, dict) or not isinstance(prompt.get("messages"), list) or not prompt["messages"]:
        problems.append(_error(line, "$.input", "missing_preference_input", "There is no `input` with `messages`."))
        return None
    for key in prompt.keys() - set(PROMPT_KEYS):
        problems.append(_error(line, f"$.input.{key}", "preference_unrecognized_key", f"`input` has the key {key!r}."))
    spellings = [pair for pair in SPELLINGS if value.keys() & set(pair)]
    if len(spellings) != 1 or not value.keys() >= set(spellings[0]):
        text = "Both spellings are used." if len(spellings) > 1 else "One answer or both are missing."
        problems.append(_error(line, "$", "missing_preference_answers", text))
        return None
    examples = []
    for key in spellings[0]:
        answer = value[key]
        if not isinstance(answer, list) or len(answer) != 1 or not _is_answer(answer[0]):
            text = f"`{key}` is not a list of one assistant message."
            problems.append(_error(line, f"$.{key}", "invalid_preference_answer", text))
            continue
        examples.append(_example(prompt, answer[0], key, line, problems))
    if len(examples) < 2 or examples[0] is None or examples[1] is None:
        return None
    if examples[0].messages[-1] == examples[1].messages[-1]:
        problems.append(_error(line, "$", "identical_answers", "The two answers are the same, so neither is better."))
    return Pair(line.number, examples[0], examples[1])


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _example(
    prompt: Mapping[str, Any], answer: Mapping[str, Any], key: str, line: Line, problems: list[Problem]
) -> ChatExample | None:
    """Prompt and answer as a chat example in which only the answer is trained; a problem is told once."""
    context = [{**m, "weight": 0} if _is_answer(m) else m for m in prompt["messages"]]
    chat = {
        **{name: prompt[name] for name in PROMPT_KEYS if name in prompt},
        "messages": [*context, {**answer, "weight": 1}],
    }
    parsed = parse_line(msgspec.json.encode(chat), line.number)
    place = f"$.messages[{len(context)}]"
    for problem in parsed.problems:
        if problem.path.startswith(place):
            path = f"$.{key}[0]" + problem.path.removeprefix(place)
        else:
            path = "$.input" + problem.path.removeprefix("$")
        moved = replace(problem, path=path)
        if moved not in problems:
            problems.append(moved)
    return parsed.example


def _error(line: Line, path: str, code: str, message: str) -> Problem:
    return Problem(line.number, path, code, "error", message, _FORM)
