import datetime
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import FAMILY_NAMES, write_model_folder

from smedje.chat.template import render_examples, render_prompt
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.errors import InvalidRequest, UnsupportedField

TODAY = datetime.date(2025, 3, 1)
TOOL = {"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return load_chat_tokenizer(
        write_model_folder(tmp_path_factory.mktemp(request.param) / request.param, request.param), today=TODAY
    )


def family(tmp_path: Path, name: str) -> ChatTokenizer:
    return load_chat_tokenizer(write_model_folder(tmp_path / name, name), today=TODAY)


TEXTS = st.one_of(
    st.sampled_from(["Hi", " leading", "\nnewline first", "\n\n", "trailing \n ", "  two  spaces ", "19 øre 🙂", "x"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n"), min_size=1, max_size=12),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, object]]:
    """An optional system message, then one to four user and assistant turns, some of them only context."""
    messages: list[dict[str, object]] = []
    if draw(st.booleans()):
        messages.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(TEXTS)})
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(TEXTS)})
        messages.append({"role": "assistant", "content": draw(TEXTS), "weight": draw(st.sampled_from([0, 1, 1]))})
    messages[-1]["weight"] = 1
    return messages


def trained_turns(messages: list[dict[str, object]]) -> list[int]:
    return [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1)]


@given(messages=conversations())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_example_begins_with_exactly_the_prompt_it_is_sampled_after(
    tokenizer: ChatTokenizer, messages: list[dict[str, object]]
) -> None:
    """For every template and every trained answer, some example is the prompt's ids followed by the trained answer."""
    examples = render_examples(tokenizer, messages)
    turns = trained_turns(messages)
    assert len(examples) in {1, len(turns)}
    for place, turn in enumerate(turns):
        example = examples[place] if len(examples) > 1 else examples[0]
        prompt = render_prompt(tokenizer, messages[:turn])
        assert example.tokens[: len(prompt)] == prompt
        assert example.weights[len(prompt)] == 1.0
        if place == 0:
            assert not any(example.weights[: len(prompt)])


@given(messages=conversations())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trained_stretches_end_with_one_stop_id_each(
    tokenizer: ChatTokenizer, messages: list[dict[str, object]]
) -> None:
    """Every stretch of trained tokens ends with a stop id, has no other, and there is one for each trained answer."""
    stretches = 0
    for example in render_examples(tokenizer, messages):
        assert len(example.tokens) == len(example.weights)
        assert example.weights[-1] == 1.0
        weights = [*example.weights, 0.0]
        for place, token in enumerate(example.tokens):
            if weights[place] and not weights[place + 1]:
                stretches += 1
                assert token in tokenizer.stop_ids
            elif weights[place]:
                assert token not in tokenizer.stop_ids
    assert stretches == len(trained_turns(messages))


def test_trained_text_is_the_answer(tokenizer: ChatTokenizer) -> None:
    """The trained tokens decode to the assistant's words and nothing of the prompt."""
    messages = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "I am fine, thank you."}]
    (example,) = render_examples(tokenizer, messages)
    trained = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    text = tokenizer.decode(trained).removeprefix("<think>\n\n</think>\n\n")
    assert text.strip() == "I am fine, thank you."


def test_message_weight_zero_is_context_only(tokenizer: ChatTokenizer) -> None:
    """An answer with weight 0 stands in the tokens, untrained; an answer after the last trained one does not stand."""
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first", "weight": 0},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "third", "weight": 0},
    ]
    (example,) = render_examples(tokenizer, messages)
    trained = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert "second" in tokenizer.decode(trained)
    assert "first" not in tokenizer.decode(trained)
    assert "first" in tokenizer.decode(example.tokens)
    assert "third" not in tokenizer.decode(example.tokens)


def test_fractional_weight_is_kept(tmp_path: Path) -> None:
    """A message's weight is the weight of each of its tokens."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]
    (example,) = render_examples(family(tmp_path, "smollm2"), messages)
    assert set(example.weights) == {0.0, 0.5}


def test_multi_turn_conversation_is_one_example_where_the_template_allows(tmp_path: Path) -> None:
    """ChatML keeps earlier answers as they were, so one example trains them all."""
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    assert len(render_examples(family(tmp_path, "smollm2"), messages)) == 1
    assert len(render_examples(family(tmp_path, "phi-3"), messages)) == 1
    assert len(render_examples(family(tmp_path, "llama-3.2"), messages)) == 1


def test_reasoning_that_the_template_drops_gives_one_example_an_answer(tmp_path: Path) -> None:
    """Qwen 3 strips reasoning from earlier turns; each answer is trained with its reasoning after the stripped past."""
    qwen = family(tmp_path, "qwen-3")
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<think>\naha\n</think>\n\nsecond"},
    ]
    first, second = (qwen.decode(example.tokens, skip_special=False) for example in render_examples(qwen, messages))
    assert first.endswith("<think>\nhm\n</think>\n\nfirst<|im_end|>")
    assert "hm" not in second
    assert second.endswith("<think>\naha\n</think>\n\nsecond<|im_end|>")


def test_phi_3_trains_its_end_of_turn_and_not_the_end_of_text(tmp_path: Path) -> None:
    """Phi-3's template writes <|end|> and then <|endoftext|>; the example ends with the first."""
    phi = family(tmp_path, "phi-3")
    (example,) = render_examples(phi, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert phi.decode(example.tokens[-1:], skip_special=False) == "<|end|>"


def test_template_without_an_end_gets_the_eos_token(tmp_path: Path) -> None:
    """An answer that nothing ends is ended with the eos token, and each answer is an example of its own."""
    plain = family(tmp_path, "plain")
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    examples = render_examples(plain, messages)
    assert len(examples) == 2
    assert all(example.tokens[-1] == plain.eos_id for example in examples)


def test_bos_is_never_doubled(tokenizer: ChatTokenizer) -> None:
    """A prompt holds the bos token at most once, at the beginning."""
    ids = render_prompt(tokenizer, [{"role": "user", "content": "Hello"}])
    if tokenizer.bos is not None and tokenizer.bos in tokenizer.template.source + "{{ bos_token }}":
        bos = tokenizer.tokenizer.token_to_id(tokenizer.bos)
        assert ids.count(bos) <= 1
        assert bos not in ids[1:]


def test_system_message_is_kept_where_the_template_has_no_place_for_it(tmp_path: Path) -> None:
    """Gemma 2 refuses a system role and the sample Mistral template drops it: it is put before the user's text."""
    for name in ("gemma-2", "mistral"):
        tokenizer = family(tmp_path, name)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert "Be brief.\n\nHi" in tokenizer.decode(render_prompt(tokenizer, messages))


def test_developer_is_system_unless_the_template_knows_it(tmp_path: Path) -> None:
    """A developer message and a system message give the same ids."""
    tokenizer = family(tmp_path, "smollm2")
    prompts = [
        render_prompt(tokenizer, [{"role": role, "content": "Be brief."}, {"role": "user", "content": "Hi"}])
        for role in ("developer", "system")
    ]
    assert prompts[0] == prompts[1]


def test_text_parts_are_joined(tmp_path: Path) -> None:
    """Content as text parts gives the ids of the joined text; another part is refused by its place."""
    tokenizer = family(tmp_path, "smollm2")
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    joined = render_prompt(tokenizer, [{"role": "user", "content": "Hello"}])
    assert render_prompt(tokenizer, [{"role": "user", "content": parts}]) == joined
    with pytest.raises(UnsupportedField, match=r"messages\[0\]\.content\[0\].*image_url"):
        render_prompt(tokenizer, [{"role": "user", "content": [{"type": "image_url"}]}])


def test_tools_and_calls_reach_the_text(tmp_path: Path) -> None:
    """Tools, a call with its arguments as an object, and the tool's result are rendered as the family writes them."""
    tokenizer = family(tmp_path, "qwen-2.5")
    call = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"parcel": 7}'}}
    messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "in Odense", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is in Odense."},
    ]
    (example,) = render_examples(tokenizer, messages, tools=[TOOL])
    text = tokenizer.decode(example.tokens, skip_special=False)
    assert json.dumps(TOOL) in text
    assert '{"name": "track", "arguments": {"parcel": 7}}' in text
    assert "<tool_response>\nin Odense\n</tool_response>" in text
    trained = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert tokenizer.decode(trained).count("tool_call>") == 2


def test_template_that_refuses_the_conversation_says_so(tmp_path: Path) -> None:
    """What the template raises becomes an error for people."""
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InvalidRequest, match="must alternate") as caught:
        render_prompt(family(tmp_path, "gemma-2"), messages)
    assert caught.value.code == "chat_template_error"


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "empty_messages"),
        ([{"content": "a"}], "missing_role"),
        ([{"role": "user", "content": 3}], "invalid_content"),
        ([{"role": "user", "content": "a"}], "no_trained_message"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}], "no_trained_message"),
        ([{"role": "assistant", "content": "a"}], "wrong_role_order"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}], "invalid_tool_calls"),
    ],
)
def test_conversations_that_cannot_be_examples(tmp_path: Path, messages: list[dict[str, object]], code: str) -> None:
    """Each malformed conversation has its own code."""
    with pytest.raises(InvalidRequest) as caught:
        render_examples(family(tmp_path, "smollm2"), messages)
    assert caught.value.code == code


def test_date_in_a_template_is_the_date_given(tmp_path: Path) -> None:
    """Llama 3.2 prints the date; a fixed date gives the same ids on every day."""
    folder = write_model_folder(tmp_path / "m", "llama-3.2")
    tokenizer = load_chat_tokenizer(folder, today=datetime.date(2024, 2, 29))
    assert "Today Date: 29 Feb 2024" in tokenizer.decode(render_prompt(tokenizer, [{"role": "user", "content": "a"}]))


def test_template_runs_in_a_sandbox(tmp_path: Path) -> None:
    """A template that reaches for Python's internals is stopped."""
    folder = write_model_folder(tmp_path / "m", "smollm2")
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}{{ ''.__class__.__bases__[0] }}")
    with pytest.raises(InvalidRequest, match="unsafe"):
        render_prompt(load_chat_tokenizer(folder), [{"role": "user", "content": "a"}])


def test_prompts_equal_transformers(tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On seeded conversations the ids are those of transformers' `apply_chat_template`."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("oracle")
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=tokenizer.bos, eos_token=tokenizer.eos
    )
    source = tokenizer.template.source.replace('strftime_now("%d %b %Y")', '"01 Mar 2025"')
    random_numbers = random.Random(7)
    words = ["Hello", "my parcel", "19 øre", "🙂", "def f(x):\n    return x", "東京", "thank you."]
    for turns in (1, 2, 3):
        messages = []
        for _ in range(turns):
            messages.append({"role": "user", "content": " ".join(random_numbers.choices(words, k=5))})
            messages.append({"role": "assistant", "content": " ".join(random_numbers.choices(words, k=5))})
        asked = messages[:-1]
        expected = oracle.apply_chat_template(
            asked, chat_template=source, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert render_prompt(tokenizer, asked) == expected
