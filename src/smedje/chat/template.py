"""Messages to token ids: one path for the prompt that is sampled after and for the example that is trained on.

The text of a conversation is cut where an answer begins, and each piece is encoded after the piece before it. A
training example is the prompt's own pieces followed by the answer, so it begins with exactly the ids that the model
will see when it is asked. Knows the template's text and the tokenizer's ids; refuses to know models, files and jobs.

What is trained in an answer ends with the first id of `ChatTokenizer.stop_ids`: the model learns to stop, and learns
nothing of what the template writes after it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from smedje.chat.control_tokens import marked
from smedje.chat.messages import Tools, Turn, to_turns
from smedje.chat.tokenizer import ChatTokenizer
from smedje.errors import InvalidRequest

if TYPE_CHECKING:
    from smedje.chat.jinja_template import ChatTemplate

_SENTINEL = "smedjeanswer"


@dataclass(frozen=True)
class RenderedExample:
    """One training example of n tokens.

    tokens: n ids. weights: n numbers >= 0; weights[i] says how much predicting tokens[i] counts, so weights[0] never
    matters and a prompt's weights are 0.
    """

    tokens: list[int]
    weights: list[float]


def render_prompt(
    tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, Any]], *, tools: Tools | None = None
) -> list[int]:
    """The ids after which the model answers `messages`.

    messages: OpenAI-shaped dicts. tools: OpenAI-shaped function tools.
    Raises InvalidRequest when the messages are malformed or the template refuses them, UnsupportedField for content
    that is not text.
    """
    turns, tools = _prepare(tokenizer, messages, tools)
    texts = [_prompt_text(tokenizer, turns[:end], tools) for end in (*_answers(turns), len(turns))]
    return _encode_pieces(tokenizer, _pieces(texts))


def render_examples(
    tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, Any]], *, tools: Tools | None = None
) -> list[RenderedExample]:
    """The training examples of a conversation, at least one.

    An assistant message counts with its `weight` (1 when absent); 0 makes it context. The example ends with the last
    message that counts. One example holds every answer where that shows each answer exactly as it will be sampled;
    where the template rewrites earlier turns (Qwen 3 drops their reasoning) each answer gets an example of its own.
    Raises as `render_prompt` does, and InvalidRequest (`no_trained_message`) when no assistant message counts.
    """
    turns, tools = _prepare(tokenizer, messages, tools)
    weights = _answer_weights(messages, turns)
    trained = [index for index, weight in weights.items() if weight > 0]
    if not trained:
        raise InvalidRequest(
            "No assistant message is trained: there is none, or each has weight 0. Give at least one a weight of 1.",
            code="no_trained_message",
            param="messages",
        )
    if trained[0] == 0:
        raise InvalidRequest(
            "messages[0] is an assistant message with nothing before it to answer. Put a user message first, "
            "or give it weight 0.",
            code="wrong_role_order",
            param="messages[0]",
        )
    ends = [index for index in _answers(turns) if index <= trained[-1]]
    prompts = {end: _prompt_text(tokenizer, turns[:end], tools) for end in ends}
    answers = {index: _answer_text(tokenizer, turns[: index + 1], prompts[index], tools) for index in trained}
    if _stands_still(tokenizer, prompts, answers):
        return [_one_example(tokenizer, prompts, answers[trained[-1]], weights)]
    return [
        _last_answer_example(tokenizer, [prompts[end] for end in ends if end <= index], answers[index], weights[index])
        for index in trained
    ]


def _prepare(
    tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, Any]], tools: Tools | None
) -> tuple[list[Turn], Tools | None]:
    """Turns and tools as the template takes them, with marks in every control token that a caller spelled."""
    control = tokenizer.control_tokens
    form = tokenizer.call_form
    turns = [
        {key: part if key == "role" else marked(part, control) for key, part in turn.items()}
        for turn in to_turns(messages, tokenizer.template, form, tools=tools)
    ]
    return turns, marked(tools, control) if form.native else None


def _answers(turns: Sequence[Turn]) -> list[int]:
    """Where answers stand. One at the very beginning has no prompt, so it is only context."""
    return [index for index, turn in enumerate(turns) if index > 0 and turn["role"] == "assistant"]


def _answer_weights(messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn]) -> dict[int, float]:
    """Index of turn to weight, for each assistant turn: whatever else is joined or added, answers stay one by one."""
    weights = [message.get("weight") for message in messages if message.get("role") == "assistant"]
    places = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    return {index: 1.0 if weight is None else float(weight) for index, weight in zip(places, weights, strict=True)}


def _prompt_text(tokenizer: ChatTokenizer, turns: Sequence[Turn], tools: Tools | None) -> str:
    return tokenizer.template.render(turns, tools=tools, add_generation_prompt=True)


def _answer_text(tokenizer: ChatTokenizer, turns: Sequence[Turn], prompt: str, tools: Tools | None) -> str:
    """What the template writes after `prompt` for the last of `turns`, an assistant turn."""
    whole = tokenizer.template.render(turns, tools=tools, add_generation_prompt=False)
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    start = _content_start(tokenizer.template, turns, tools)
    if start is None:
        raise InvalidRequest(
            "The chat template of this base model writes an answer differently from the place where it asks for one, "
            "so the answer cannot be told from its prompt.",
            code="chat_template_error",
            param="messages",
        )
    # Reasoning models open `<think>` in the prompt and leave it out of answers: the answer follows that prompt.
    return whole[start:]


def _content_start(template: "ChatTemplate", turns: Sequence[Turn], tools: Tools | None) -> int | None:
    marked = [*turns[:-1], {**turns[-1], "content": _SENTINEL}]
    start = template.render(marked, tools=tools, add_generation_prompt=False).rfind(_SENTINEL)
    return None if start < 0 or not turns[-1]["content"] else start


def _stands_still(tokenizer: ChatTokenizer, prompts: Mapping[int, str], answers: Mapping[int, str]) -> bool:
    """Whether every trained answer stands in the later prompts, up to its end of turn, as it is sampled."""
    ends = list(prompts)
    for end, following in pairwise(ends):
        if not prompts[following].startswith(prompts[end]):
            return False
        if end in answers:
            kept = _up_to_stop(tokenizer, prompts[following][len(prompts[end]) :])
            if kept is None or kept != _up_to_stop(tokenizer, answers[end]):
                return False
    return True


def _up_to_stop(tokenizer: ChatTokenizer, text: str) -> str | None:
    ends = [text.find(stop) + len(stop) for stop in tokenizer.stop_strings if stop in text]
    return text[: min(ends)] if ends else None


def _one_example(
    tokenizer: ChatTokenizer, prompts: Mapping[int, str], answer: str, weights: Mapping[int, float]
) -> RenderedExample:
    first, *between = _encode_each(tokenizer, [*_pieces(list(prompts.values())), answer])
    tokens, counted = list(first), [0.0] * len(first)
    for index, ids in zip(prompts, between[:-1], strict=False):
        length = _trained_length(tokenizer, ids) or 0
        tokens += ids
        counted += [weights[index]] * length + [0.0] * (len(ids) - length)
    completion = _completion(tokenizer, between[-1])
    return RenderedExample(tokens + completion, counted + [weights[list(prompts)[-1]]] * len(completion))


def _last_answer_example(
    tokenizer: ChatTokenizer, prompts: Sequence[str], answer: str, weight: float
) -> RenderedExample:
    *pieces, last = _encode_each(tokenizer, [*_pieces(prompts), answer])
    prompt = [number for ids in pieces for number in ids]
    completion = _completion(tokenizer, last)
    return RenderedExample(prompt + completion, [0.0] * len(prompt) + [weight] * len(completion))


def _completion(tokenizer: ChatTokenizer, ids: list[int]) -> list[int]:
    length = _trained_length(tokenizer, ids)
    return [*ids, tokenizer.eos_id] if length is None else ids[:length]


def _trained_length(tokenizer: ChatTokenizer, ids: Sequence[int]) -> int | None:
    """Number of ids up to and including the first stop id, None without one."""
    return next((place + 1 for place, number in enumerate(ids) if number in tokenizer.stop_ids), None)


def _pieces(prompts: Sequence[str]) -> list[str]:
    """The last prompt, cut where the earlier prompts end; in one piece where it does not begin with them."""
    pieces = [prompts[0]]
    for earlier, later in pairwise(prompts):
        if not later.startswith(earlier):
            return [prompts[-1]]
        pieces.append(later[len(earlier) :])
    return pieces


def _encode_pieces(tokenizer: ChatTokenizer, pieces: Sequence[str]) -> list[int]:
    return [number for ids in _encode_each(tokenizer, pieces) for number in ids]


def _encode_each(tokenizer: ChatTokenizer, pieces: Iterable[str]) -> list[list[int]]:
    """Ids of consecutive pieces of one text, each encoded after what stands before it.

    Added tokens cut the text, so what stands before the last of them cannot change the ids after it.
    """
    encoded = []
    context = ""
    for piece in pieces:
        encoded.append(_encode_after(tokenizer, context, piece))
        context = _from_last_added_token(tokenizer, context + piece)
    return encoded


def _encode_after(tokenizer: ChatTokenizer, context: str, piece: str) -> list[int]:
    before = tokenizer.encode(context) if context else []
    together = tokenizer.encode(context + piece)
    if together[: len(before)] == before:
        return together[len(before) :]
    # A token would span the cut. The model is asked at the cut, so the piece is encoded on its own.
    if tokenizer.prepends_space:
        newline = tokenizer.encode("\n")
        anchored = tokenizer.encode("\n" + piece)
        if anchored[: len(newline)] == newline:
            return anchored[len(newline) :]
    return tokenizer.encode(piece)


def _from_last_added_token(tokenizer: ChatTokenizer, text: str) -> str:
    start = 0
    for found in tokenizer.added_tokens.finditer(text):
        start = found.start()
    return text[start:]
