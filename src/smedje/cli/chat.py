"""`smedje chat`: ask a model, once or in a conversation.

Knows chat completions; knows nothing of templates or engines.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smedje.cli.output import JsonFlag, note, print_json

if TYPE_CHECKING:
    from smedje.cli.client import Client

COMPLETIONS = "/v1/chat/completions"


def chat(
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What to ask; without it, a conversation.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="A deployment, a fine-tuned model or a base model.")] = "",
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes a draw repeatable.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model. Without a question: a conversation on a terminal, else standard input is the question."""
    from smedje.cli.client import open_client

    if not model:
        raise typer.BadParameter("name a model; see them with: smedje models list", param_hint="--model")
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise typer.BadParameter("standard input is empty.", param_hint="QUESTION")
    settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    request = {name: value for name, value in settings.items() if value is not None}
    messages = [{"role": "system", "content": system}] if system else []
    with open_client() as client:
        if question is None:
            _converse(client, request, messages)
            return
        messages.append({"role": "user", "content": question})
        if as_json:
            print_json(client.post(COMPLETIONS, {**request, "messages": messages}))
        else:
            stream_answer(client, {**request, "messages": messages})


def stream_answer(client: "Client", request: dict[str, Any]) -> str:
    """Print an answer as it is made; the whole answer."""
    parts: list[str] = []
    ending = None
    for chunk in client.stream(COMPLETIONS, {**request, "stream": True}):
        for choice in chunk.get("choices", ()):
            text = choice.get("delta", {}).get("content") or ""
            parts.append(text)
            print(text, end="", flush=True)
            ending = choice.get("finish_reason") or ending
    print(flush=True)
    if ending == "length":
        note("the answer was cut at the token limit; see --max-tokens")
    elif ending == "content_filter":
        note("a content filter ended the answer")
    return "".join(parts)


def _converse(client: "Client", request: dict[str, Any], messages: list[dict[str, str]]) -> None:
    beginning = len(messages)
    note("/reset begins anew; /exit or Ctrl-D ends")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line == "/exit":
            return
        if line == "/reset":
            del messages[beginning:]
        elif line:
            messages.append({"role": "user", "content": line})
            answer = stream_answer(client, {**request, "messages": messages})
            messages.append({"role": "assistant", "content": answer})
