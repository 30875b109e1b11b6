"""The fast way through plain lines and the rules give the same, whatever the lines."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from smedje.data.encode import conversation_digest
from smedje.data.parse import parse_lines
from smedje.data.scan import scan_range

TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "",
            " ",
            "Hi",
            "role",
            "content",
            "messages",
            '"role"',
            '"',
            "C:\\",
            '\\"',
            "a]",
            "<|im_end|>",
            "[INST]",
            "</s>",
            "\u2003",
            "\x00",
            "\ud800",
            "æ",
        ]
    ),
)
ROLES = st.sampled_from(["system", "user", "assistant", "user", "assistant", "tool", "developer", "human"])
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES, "content": TEXTS},
    optional={"weight": st.sampled_from([0, 1, 1.0, 2, None, True]), "name": TEXTS, "x": TEXTS},
)
COLUMNS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=4)},
    optional={"tools": st.sampled_from([None, [], 3]), "id": TEXTS | st.integers(), "content": TEXTS, "role": TEXTS},
)
EDITS = st.sampled_from(
    [
        lambda raw: raw,
        lambda raw: raw.replace(b'"role"', b'"r\\u006fle"', 1),
        lambda raw: raw.replace(b'"content"', b'"role": "user", "content"', 1),
        lambda raw: raw.replace(b"}", b"", 1),
        lambda raw: raw.replace(b"H", b"\xff", 1),
        lambda raw: raw.replace(b"i", b"\\ud83d", 1),
        lambda raw: raw.replace(b'"weight"', b'"weight": 1, "weight"', 1),
        lambda raw: raw + b"\r",
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: b" " * len(raw),
        lambda raw: raw.replace(b"[", b"\\u005b", 1),
        lambda raw: raw.replace(b'"role": "user"', b'"role": "user", "role": "user"', 1),
        lambda raw: raw.replace(b'"weight": null', b'"weight": null, "weight": null', 1),
    ]
)


def plain(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": "A"}]}


@given(rows=st.lists(st.tuples(COLUMNS, EDITS, st.booleans()), max_size=8))
@settings(max_examples=400, deadline=None)
def test_a_scan_tells_what_the_rules_tell(rows: list[Any]) -> None:
    """Problems, counts, lengths and digests of a scan are those of the rules, line by line, after plain lines too."""
    lines = [json.dumps(plain(number)).encode() for number in range(2)]
    lines += [edit(json.dumps(value, ensure_ascii=escaped).encode("utf-8", "replace")) for value, edit, escaped in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        found = scan_range(path, 0, path.stat().st_size)
        parsed = list(parse_lines(path))
    problems = [problem for one in parsed for problem in one.problems]
    assert found.problems == sorted(problems, key=lambda one: (one.line, one.severity))
    assert found.counts == dict(Counter(problem.code for problem in problems))
    examples = [one.example for one in parsed if one.example is not None]
    assert found.digests == b"".join(conversation_digest(one).to_bytes(8, "little") for one in examples)
    assert (found.valid, found.with_system) == (
        len(examples),
        sum(one.messages[0].role in ("system", "developer") for one in examples),
    )
    assert found.roles == dict(Counter(message.role for one in examples for message in one.messages))
