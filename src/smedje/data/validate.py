"""Checks of a whole chat data file: every problem with its line, and the statistics.

Streams: memory grows only by a few numbers an example. Refuses to know the rules of one example (rules.py); what needs
a tokenizer is apart, in `check_tokens`.
"""

from array import array
from collections import Counter
from pathlib import Path

from smedje.chat.template import render_examples
from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.encode import conversation_digest
from smedje.data.parse import ChatExample, ParsedLine, parse_lines
from smedje.data.problems import Problem, ProblemLog, problem_from
from smedje.data.report import Report, Statistics, TokenStatistics, distribution
from smedje.errors import InvalidRequest

FEWEST_EXAMPLES = 10


def validate_file(path: Path, *, fewest_examples: int = FEWEST_EXAMPLES) -> Report:
    """Every problem of a chat JSON Lines file, and its statistics without a tokenizer.

    Never raises for what is in the file. fewest_examples: fewer are an error (`invalid_n_examples`), as at OpenAI.
    """
    log, tally = ProblemLog(), _Tally()
    for parsed in parse_lines(path):
        for problem in parsed.problems:
            log.add(problem)
        tally.count(parsed, log)
    size = path.stat().st_size
    if tally.examples == 0:
        log.add(_whole_file("empty_file", "The file has no examples.", "Write one JSON object a line."))
    elif tally.examples < fewest_examples:
        log.add(_too_few(tally.examples, fewest_examples))
    return Report(log.kept(), tally.statistics(size, log))


def check_tokens(
    path: Path, tokenizer: ChatTokenizer, *, max_tokens: int | None
) -> tuple[tuple[Problem, ...], TokenStatistics]:
    """Problems that only a base model's tokenizer and template show, and the token statistics.

    max_tokens: the most tokens an example may have (`example_too_long` above it), None for no limit. Lines that
    `validate_file` calls an error are left out.
    """
    log, lengths, trained = ProblemLog(), array("I"), array("I")
    for parsed in parse_lines(path):
        if parsed.example is None:
            continue
        try:
            rendered = render_examples(tokenizer, parsed.example.to_messages(), tools=parsed.example.tools)
        except InvalidRequest as error:
            log.add(problem_from(error, line=parsed.line, remedy="Change the example, or choose another base model."))
            continue
        for example in rendered:
            lengths.append(len(example.tokens))
            trained.append(sum(weight > 0 for weight in example.weights))
        longest = max(len(example.tokens) for example in rendered)
        if max_tokens is not None and longest > max_tokens:
            log.add(_too_long(parsed.line, longest, max_tokens))
    tokens, counted = sum(lengths), sum(trained)
    return log.kept(), TokenStatistics(
        examples=len(lengths),
        tokens=tokens,
        trained_tokens=counted,
        trained_share=counted / tokens if tokens else 0.0,
        tokens_per_example=distribution(lengths),
        trained_tokens_per_example=distribution(trained),
        limit=max_tokens,
        problem_codes=dict(log.counts),
    )


def _whole_file(code: str, message: str, remedy: str) -> Problem:
    return Problem(0, "$", code, "error", message, remedy)


def _too_few(found: int, fewest: int) -> Problem:
    examples = "example" if found == 1 else "examples"
    message = f"Training file has {found} {examples}, but must have at least {fewest} examples."
    return _whole_file("invalid_n_examples", message, f"Add {fewest - found} more; 50 to 100 are a good start.")


def _too_long(line: int, length: int, limit: int) -> Problem:
    message = f"The example has {length} tokens; at most {limit} are allowed."
    return Problem(line, "$.messages", "example_too_long", "error", message, "Shorten or split the conversation.")


class _Tally:
    """Collects the statistics while the lines go by."""

    def __init__(self) -> None:
        self.examples = 0
        self._valid = 0
        self._with_system = 0
        self._duplicates = 0
        self._roles: Counter[str] = Counter()
        self._turns = array("I")
        self._user = array("I")
        self._assistant = array("I")
        self._first_lines: dict[int, int] = {}

    def count(self, parsed: ParsedLine, log: ProblemLog) -> None:
        """Take one line into account; a copy of an earlier example is a warning in `log`."""
        if any(problem.code == "blank_line" for problem in parsed.problems):
            return
        self.examples += 1
        if parsed.example is not None:
            self._count_example(parsed.example)
            self._look_for_copy(parsed.example, log)

    def statistics(self, size: int, log: ProblemLog) -> Statistics:
        """The statistics of what was counted. size: the file's bytes."""
        return Statistics(
            examples=self.examples,
            valid_examples=self._valid,
            bytes=size,
            messages_by_role=dict(self._roles),
            messages_per_example=distribution(self._turns),
            user_characters=distribution(self._user),
            assistant_characters=distribution(self._assistant),
            system_prompt_share=self._with_system / self._valid if self._valid else 0.0,
            duplicate_examples=self._duplicates,
            errors=log.errors,
            warnings=log.warnings,
            problem_codes=dict(log.counts),
        )

    def _count_example(self, example: ChatExample) -> None:
        self._valid += 1
        self._turns.append(len(example.messages))
        self._with_system += example.messages[0].role in ("system", "developer")
        for message in example.messages:
            self._roles[message.role] += 1
            if message.role == "user":
                self._user.append(len(message.content or ""))
            elif message.role == "assistant":
                self._assistant.append(len(message.content or ""))

    def _look_for_copy(self, example: ChatExample, log: ProblemLog) -> None:
        first = self._first_lines.setdefault(conversation_digest(example), example.line)
        if first != example.line:
            self._duplicates += 1
            message = f"The example is the same as line {first}."
            log.add(Problem(example.line, "$", "duplicate_example", "warning", message, "Remove the copy."))
