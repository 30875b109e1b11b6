"""Files that people begin with - the cookbook's toy file, Azure's Xbox example - and the cookbook's own checks."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from smedje.data.insights import look_at
from smedje.data.parse import parse_line
from smedje.data.validate import validate_file

HAPPY = "You are a happy assistant that puts a positive spin on everything."
# The toy file of the OpenAI cookbook (MIT licence), as (system, turns): it has two faults on purpose, of which its own
# checker sees neither: line 4 answers nothing, and line 5 repeats itself far beyond the context.
TOY: list[tuple[bool, list[str]]] = [
    (True, ["I fell off my bike today.", "It's great that you're getting exercise outdoors!"]),
    (
        True,
        [
            "I lost my tennis match today.",
            "It's ok, it happens to everyone.",
            "But I trained so hard!",
            "It will pay off next time.",
            "I'm going to switch to golf.",
            "Golf is fun too!",
            "I don't even know how to play golf.",
            "It's easy to learn!",
        ],
    ),
    (False, ["I lost my book today.", "You can read everything on ebooks these days!"]),
    (True, ["", "You're great!"]),
    (True, ["I'm hungry.", "Eat a banana!" * 2000]),
]
XBOX = (
    "You are an Xbox customer support agent whose primary goal is to help users with issues they are experiencing with "
    "their Xbox devices. You are friendly and concise. You only provide factual answers to queries, and do not provide "
    "answers that are not related to Xbox."
)
XBOX_TURNS = [
    (
        "Is Xbox better than PlayStation?",
        "I apologize, but I cannot provide personal opinions. My primary job is to assist you with any issues related "
        "to your Xbox device. Do you have any Xbox-related issues that need addressing?",
    ),
    (
        "Can I play PC games on my Xbox?",
        "While Xbox consoles don't natively support PC games, they can play an array of Xbox games, many of which are "
        "also available on PC. Can I assist you with finding games compatible with your Xbox device?",
    ),
    (
        "I'm having trouble connecting my Xbox to the Wi-Fi.",
        "No worries, let's go through the network settings on your Xbox. Can you please tell me what happens when you "
        "try to connect it to the Wi-Fi?",
    ),
]


def conversation(system: str | None, texts: list[str]) -> dict[str, Any]:
    first = [] if system is None else [{"role": "system", "content": system}]
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts) if text]
    return {"messages": [*first, *turns]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_toy_file_is_told_what_its_own_checker_misses(tmp_path: Path) -> None:
    """Five examples are too few; line 4 answers nothing; one line has no system prompt; lengths show the banana."""
    path = write(tmp_path / "toy.jsonl", [conversation(HAPPY if has else None, texts) for has, texts in TOY])
    report = validate_file(path)
    assert [(one.line, one.code, one.path, one.message) for one in report.problems] == [
        (0, "invalid_n_examples", "$", "Training file has 5 examples, but must have at least 10 examples."),
        (
            4,
            "wrong_role_order",
            "$.messages[1].role",
            "This assistant message follows system, so it answers nothing.",
        ),
    ]
    assert (report.statistics.examples, report.statistics.valid_examples) == (5, 4)
    assert report.statistics.assistant_characters is not None
    assert report.statistics.assistant_characters.max == 26_000
    assert report.summary.startswith("Not ready: 2 errors in 5 examples")
    findings = {one.code: one.lines for one in look_at(path).findings}
    assert findings == {"missing_system_prompt": (3,)}


def test_the_xbox_example_is_good_but_short(tmp_path: Path) -> None:
    """Three good conversations, of which ten are needed; repeated until there are ten they are only copies."""
    rows = [conversation(XBOX, list(turns)) for turns in XBOX_TURNS]
    report = validate_file(write(tmp_path / "a.jsonl", rows))
    assert [(one.line, one.code, one.severity) for one in report.problems] == [(0, "invalid_n_examples", "error")]
    assert report.problems[0].remedy == "Add 7 more; 50 to 100 are a good start."
    assert report.statistics.messages_by_role == {"system": 3, "user": 3, "assistant": 3}
    assert report.statistics.system_prompt_share == 1.0
    many = validate_file(write(tmp_path / "b.jsonl", rows * 4))
    assert (many.verdict, many.statistics.duplicate_examples) == ("warning", 9)
    assert many.summary == "Ready to train: 12 examples, with 9 warnings to look at."


def cookbook(value: Any) -> set[str]:
    """The checks of the OpenAI cookbook's notebook `Chat_finetuning_data_prep`, by its errors' names."""
    if not isinstance(value, dict):
        return {"data_type"}
    messages = value.get("messages")
    if not messages:
        return {"missing_messages_list"}
    found = set()
    for message in messages:
        if "role" not in message or "content" not in message:
            found.add("message_missing_key")
        if message.keys() - {"role", "content", "name", "function_call", "weight"}:
            found.add("message_unrecognized_key")
        if message.get("role") not in ("system", "user", "assistant", "function"):
            found.add("unrecognized_role")
        content = message.get("content")
        if (not content and not message.get("function_call")) or not isinstance(content, str):
            found.add("missing_content")
    if not any(message.get("role") == "assistant" for message in messages):
        found.add("example_missing_assistant_message")
    return found


KEYS = st.sampled_from(["role", "content", "name", "weight", "text", "id"])
ROLES = st.sampled_from(["system", "user", "assistant", "human", "bot", "", None])
MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": ROLES, "content": st.sampled_from(["Hi", "", None, 3, []]), "text": st.just("x")}
)
LINES = st.one_of(
    st.just([1]),
    st.just("text"),
    st.fixed_dictionaries({}, optional={"messages": st.lists(MESSAGES, max_size=4)}),
)


@given(LINES)
@settings(max_examples=300)
def test_every_error_of_the_cookbook_is_told_by_its_name(value: Any) -> None:
    """What its checker finds in a line, ours finds under the same name; a missing key is told once, not twice."""
    told = {problem.code for problem in parse_line(json.dumps(value).encode(), 1).problems}
    wanted = cookbook(value)
    if "unrecognized_role" in wanted:
        # Which messages count as answers is only asked where every role is known.
        wanted.discard("example_missing_assistant_message")
    if "message_missing_key" in wanted:
        wanted -= {"missing_content", "unrecognized_role"}
    assert wanted <= told


def test_a_line_of_fifty_megabytes_is_one_problem(tmp_path: Path) -> None:
    """It is told with its line number, and the lines around it are read as ever."""
    good = json.dumps(conversation(None, ["Q", "A"])).encode() + b"\n"
    path = tmp_path / "long.jsonl"
    with path.open("wb") as stream:
        stream.write(good)
        stream.write(b'{"messages": "' + b"x" * 50_000_000 + b'"}\n')
        stream.write(good)
    report = validate_file(path, fewest_examples=1)
    assert [(one.line, one.code) for one in report.problems] == [(2, "line_too_large"), (3, "duplicate_example")]
