"""Statistics of a file: in a base model's tokens, and as percentiles."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_models import write_model_folder

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.counting import count_tokens
from smedje.data.report import LARGE, distribution, report_to_json, with_tokens
from smedje.data.validate import validate_file

USER: dict[str, Any] = {"role": "user", "content": "Where is it?"}
ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "On its way."}


def line(*messages: object, **columns: object) -> bytes:
    return json.dumps({"messages": list(messages), **columns}).encode()


def write(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


def numbered(count: int) -> list[bytes]:
    return [line({"role": "user", "content": f"Question {i}"}, ASSISTANT) for i in range(count)]


def test_tokens_are_checked_against_a_base_model(tmp_path: Path) -> None:
    """Over-long examples are errors with both numbers; totals are those of the rendered examples."""
    tokenizer = load_chat_tokenizer(write_model_folder(tmp_path / "smollm2", "smollm2"))
    long = line(USER, {"role": "assistant", "content": "word " * 200})
    path = write(tmp_path / "a.jsonl", [*numbered(10), long, b"{"])
    counted = count_tokens(path, tokenizer, max_tokens=150)
    problems, tokens = counted.problems, counted.statistics
    (problem,) = problems
    assert (problem.line, problem.code) == (11, "example_too_long")
    assert re.search(r"has \d{3,} tokens; at most 150 are allowed", problem.message)
    assert tokens.examples == 11
    assert tokens.tokens_per_example is not None
    assert tokens.tokens == tokens.tokens_per_example.total
    assert 0 < tokens.trained_share < 1
    assert count_tokens(path, tokenizer, max_tokens=None).problems == ()
    report = with_tokens(validate_file(path), problems, tokens)
    assert [problem.code for problem in report.problems] == ["example_too_long", "invalid_json"]
    assert report.statistics.errors == 2
    told = json.loads(report_to_json(report))["statistics"]
    assert told["tokens"]["limit"] == 150
    assert told["problem_codes"] == {"example_too_long": 1, "invalid_json": 1}


def test_what_one_model_cannot_train_is_a_problem_of_that_model(tmp_path: Path) -> None:
    """An order that the template refuses is told with its line; tools have a place with every template."""
    tools = [{"type": "function", "function": {"name": "track"}}]
    path = write(tmp_path / "a.jsonl", [line(USER, ASSISTANT, tools=tools), line(USER, USER, ASSISTANT)])
    gemma = load_chat_tokenizer(write_model_folder(tmp_path / "gemma-2", "gemma-2"))
    problems = count_tokens(path, gemma, max_tokens=500).problems
    assert [(problem.line, problem.code) for problem in problems] == [
        (2, "chat_template_error"),
    ]


@given(values=st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_percentiles_are_values_that_occur(values: list[int]) -> None:
    """Nearest-rank: at least the share asked for is not larger."""
    found = distribution(values)
    assert found is not None
    for share, value in ((10, found.p10), (50, found.median), (90, found.p90)):
        assert value in values
        assert sum(other <= value for other in values) * 100 >= share * len(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert distribution([]) is None


def test_many_values_have_the_same_distribution() -> None:
    """Above a number of values they are sorted elsewhere, to the same result."""
    values = [(number * 7919) % 1009 for number in range(LARGE + 1)]
    large, small = distribution(values), distribution(values[:LARGE])
    assert large is not None
    assert small is not None
    assert (large.count, large.total, large.max) == (LARGE + 1, sum(values), 1008)
    assert (large.p10, large.median, large.p90, large.min) == (small.p10, small.median, small.p90, small.min)
