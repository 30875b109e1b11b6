"""Calls of tools as text: how each family writes them, that training and serving agree, and reading them back."""

import datetime
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_models import FAMILY_NAMES, write_model_folder

from smedje.chat.calls import GENERIC, CallForm, CallReader
from smedje.chat.template import render_examples, render_prompt
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer

TODAY = datetime.date(2025, 3, 1)
LLAMA = CallForm(opening='{"name": "', middle='", "parameters": ', between="", closing="}")
TOOL = {"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {}}}}
NATIVE = ("qwen-2.5", "qwen-3", "llama-3.2")


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """The tokenizer and template of every family."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    return load_chat_tokenizer(write_model_folder(folder, request.param), today=TODAY)


def call(name: str, arguments: object, number: int = 1) -> dict[str, Any]:
    """A call as the API carries it."""
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def conversation(*, calls: int, content: str | None = None) -> list[dict[str, Any]]:
    """A question, calls, what the tools answered, and the answer."""
    called = [call("track", {"parcel": number, "of": "Åse"}, number) for number in range(calls)]
    answers = [{"role": "tool", "content": f"in Odense {n}", "tool_call_id": f"call_{n}"} for n in range(calls)]
    return [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": content, "tool_calls": called},
        *answers,
        {"role": "assistant", "content": "It is in Odense."},
    ]


def read(form: CallForm, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls of an answer that comes in pieces."""
    reader = CallReader(form)
    found = [piece for text in pieces for piece in reader.feed(text)] + reader.finish()
    calls: list[tuple[str, str]] = []
    for piece in found:
        if piece.call is None:
            continue
        if piece.name is not None:
            assert piece.call == len(calls)
            calls.append((piece.name, ""))
        calls[piece.call] = (calls[piece.call][0], calls[piece.call][1] + piece.text)
    return "".join(piece.text for piece in found if piece.call is None), calls


def test_families_with_a_way_of_their_own_keep_it(tokenizer: ChatTokenizer, request: pytest.FixtureRequest) -> None:
    """Templates that write calls are found to do so, whatever the words; all others get the generic form."""
    family = request.node.callspec.params["tokenizer"]
    assert tokenizer.call_form.native == (family in NATIVE)
    assert tokenizer.call_form == {"llama-3.2": LLAMA}.get(family, tokenizer.call_form)
    if family.startswith("qwen"):
        assert tokenizer.call_form.write([]) == GENERIC.write([])


def test_a_call_is_asked_for_exactly_as_it_is_trained(tokenizer: ChatTokenizer) -> None:
    """The prompts of serving are the beginnings of the training example, and what is trained is the call's own text."""
    messages = conversation(calls=1)
    first, last = (render_prompt(tokenizer, messages[:end], tools=[TOOL]) for end in (1, 3))
    examples = render_examples(tokenizer, messages, tools=[TOOL])
    assert examples[0].tokens[: len(first)] == first
    assert examples[-1].tokens[: len(last)] == last
    trained = examples[0].tokens[len(first) :]
    text = tokenizer.decode(trained, skip_special=False)
    form = tokenizer.call_form
    written = form.write([{"function": {"name": "track", "arguments": {"parcel": 0, "of": "Åse"}}}])
    assert text.lstrip().removeprefix("<think>\n\n</think>\n\n").startswith(written)
    assert examples[0].weights[len(first)] == 1.0
    assert read(form, [tokenizer.decode(trained)])[1][0] == ("track", '{"parcel": 0, "of": "Åse"}')


def test_tools_and_answers_reach_every_model(tokenizer: ChatTokenizer) -> None:
    """No template drops them: the function, the call, and what the tool said stand in the prompt that follows."""
    prompt = render_prompt(tokenizer, conversation(calls=1)[:3], tools=[TOOL])
    text = tokenizer.decode(prompt, skip_special=False)
    for part in ('"name": "track"', '"parcel": 0', "in Odense 0", "Where is it?"):
        assert part in text, part


def test_answers_of_several_tools_are_one_turn(tmp_path: Path) -> None:
    """In the generic form two calls are one answer and their results one user's turn, as in Qwen's own template."""
    smollm2 = load_chat_tokenizer(write_model_folder(tmp_path / "s", "smollm2"))
    text = smollm2.decode(render_prompt(smollm2, conversation(calls=2, content="Let me see.")[:4]), skip_special=False)
    calls = [{"function": {"name": "track", "arguments": {"parcel": n, "of": "Åse"}}} for n in range(2)]
    assert f"assistant\nLet me see.\n{GENERIC.write(calls)}<|im_end|>" in text
    results = "\n".join(f"<tool_response>\nin Odense {n}\n</tool_response>" for n in range(2))
    assert f"<|im_start|>user\n{results}<|im_end|>" in text
    assert "<|im_start|>tool" not in text


def test_weights_stay_with_their_answers(tmp_path: Path) -> None:
    """Joining and adding turns shifts no weight: the call has weight 0 and only the last answer is trained."""
    phi = load_chat_tokenizer(write_model_folder(tmp_path / "p", "phi-3"))
    messages = conversation(calls=2)
    messages[1]["weight"] = 0
    (example,) = render_examples(phi, messages, tools=[TOOL])
    trained = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert phi.decode(trained).strip() == "It is in Odense."


ARGUMENTS = st.dictionaries(
    st.text(max_size=4), st.recursive(st.text(max_size=6) | st.integers(), st.lists, max_leaves=4), max_size=3
)
TEXTS = st.text(st.characters(exclude_characters="<{", exclude_categories=["Cs"]), max_size=12)


@given(data=st.data(), form=st.sampled_from([GENERIC, LLAMA]))
def test_what_is_written_is_read_back_however_it_is_cut(data: st.DataObject, form: CallForm) -> None:
    """Text before calls, names and arguments come back to the character, whole or a character at a time."""
    most = 3 if form.between else 1
    wanted = data.draw(st.lists(st.tuples(st.sampled_from(["f", "get_it"]), ARGUMENTS), min_size=1, max_size=most))
    before = "" if form.whole else data.draw(TEXTS).strip()
    answer = (
        before
        + "\n" * bool(before)
        + form.write([{"function": {"name": name, "arguments": arguments}} for name, arguments in wanted])
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    expected = (before, [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in wanted])
    assert read(form, pieces) == read(form, list(answer)) == expected


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (GENERIC, "plain text \n "),
        (GENERIC, "a < b <tool_ c"),
        (GENERIC, "<tool_call> is how it begins"),
        (GENERIC, '<tool_call>\n{"name"'),
        (LLAMA, '{"nothing": 1}'),
        (LLAMA, 'It is {"name": "x", "parameters": {}}'),
        (LLAMA, '{"name'),
    ],
)
def test_what_is_no_call_is_text(form: CallForm, text: str) -> None:
    """An answer that only resembles a call comes out as it was, in whatever pieces."""
    assert read(form, [text]) == read(form, list(text)) == (text, [])


def test_a_call_that_is_cut_keeps_its_beginning() -> None:
    """Where the token limit ends an answer inside the arguments, they are what there is of them."""
    whole = GENERIC.write([{"function": {"name": "f", "arguments": {"a": "some text"}}}])
    cut = whole[: whole.index("text")]
    assert read(GENERIC, [cut]) == ("", [("f", '{"a": "some ')])


def test_random_cuts_of_many_calls_agree() -> None:
    """A seeded thousand of cuttings of one long answer all give the same calls."""
    draw = random.Random(5)
    calls = [{"function": {"name": f"f{n}", "arguments": {"q": '"}]\\', "n": [n]}}} for n in range(6)]
    answer = "First.\n\n" + GENERIC.write(calls)
    expected = read(GENERIC, [answer])
    assert expected[0] == "First."
    assert len(expected[1]) == 6
    for _ in range(1000):
        cuts = sorted(draw.choices(range(len(answer)), k=draw.randrange(20)))
        assert read(GENERIC, [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]) == expected
