"""Random strict JSON schemas through a live server: python benchmarks/structured_output.py [--schemas 50]

Each seeded schema (nested objects, arrays, enums, nulls, references, patterns, bounds, free texts) is asked of the
embedded model with the official client: greedy, sampled, streamed, and two choices at once, in turn, by several clients
side by side. An answer counts when it is complete and valid by an independent validator (jsonschema-rs); one that the
token limit cut is told apart. Then masking is timed: compiling each schema, one mask a token on the very tokens that
came, and answers of equal length with and without a schema.
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema_rs
import torch
from openai import OpenAI

from smedje.chat.calls import GENERIC
from smedje.chat.grammar import answer_grammar
from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.domain.conversations import AnswerFormat
from smedje.modeling.folder import installed_folder
from smedje.modeling.pull import pull
from smedje.serving.grammar import Grammars
from smedje.serving.sampler import forbidden_tokens

MODEL = "smollm2-135m-instruct"
KEY = "smedje-benchmark-owner-key-of-some-length"
VOCABULARY = 49152
NAMES = ("name", "city", "age", "price", "tags", "owner", "status", "notes", "size", "items", "email", "year", "code")
WORDS = ("red", "green", "blue", "small", "large", "open", "closed", "Odense", "Ærø", "東京")
WAYS = ("greedy", "sampled", "streamed", "two choices")
MOST_TOKENS = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("structured_output.json"))
    options = parser.parse_args()
    schemas = [random_schema(random.Random(f"{options.seed}-{n}")) for n in range(options.schemas)]
    with tempfile.TemporaryDirectory(prefix="smedje-bench-") as scratch:
        home = Path(scratch)
        for _ in pull(MODEL, home=home):
            pass
        with serving(home) as url, OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=600) as client:
            begun = time.perf_counter()
            with ThreadPoolExecutor(options.clients) as clients:
                answers = list(clients.map(lambda pair: ask(client, *pair), enumerate(schemas)))
            seconds = time.perf_counter() - begun
            lengths = lengths_told(client)
        found = told(schemas, answers, seconds) | masks(home, schemas, answers) | lengths
    print(json.dumps(found, indent=1, ensure_ascii=False))
    options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if found["valid"] != found["answers"]:
        raise SystemExit("not every answer is valid")


def random_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A strict object of two to five properties, at most three levels deep."""
    names = draw.sample(NAMES, draw.randint(2, 5))
    shape: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_value(draw, depth + 1) for name in names},
        "required": names,
        "additionalProperties": False,
    }
    if depth == 0 and draw.random() < 0.3:
        shape["$defs"] = {"place": random_schema(draw, 2)}
        shape["properties"][names[0]] = {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]}
    return shape


def random_value(draw: random.Random, depth: int) -> dict[str, Any]:
    """A schema of one value."""
    low = draw.randint(-5, 5)
    kinds: list[dict[str, Any]] = [
        # Longer than what is written, and bounded: a small model can sing one syllable until its tokens are spent.
        {"type": "string", "maxLength": 200},
        {"type": "string", "maxLength": draw.randint(3, 30)},
        {
            "type": "string",
            "pattern": draw.choice(("^[A-Z]{2}-[0-9]{3}$", "^[a-z]{2,12}@[a-z]{2,12}\\.dk$", "^#[0-9a-f]{6}$")),
        },
        {"type": "string", "format": draw.choice(("date", "uuid", "ipv4", "date-time"))},
        {"type": "integer", "minimum": low, "maximum": low + draw.randint(1, 1000)},
        {"type": "number", "minimum": 0, "exclusiveMaximum": draw.choice((1, 10, 99.5))},
        {"type": ["boolean", "null"]},
        {"enum": draw.sample(WORDS, draw.randint(1, 5))},
        {"const": draw.choice((*WORDS, 7, True, None))},
    ]
    if depth < 3:
        kinds.append(random_schema(draw, depth))
        bounds = {"minItems": draw.randint(0, 2), "maxItems": draw.randint(2, 4)}
        kinds.append({"type": "array", "items": random_value(draw, depth + 1), **bounds})
    return draw.choice(kinds)


def ask(client: OpenAI, number: int, schema: dict[str, Any]) -> dict[str, Any]:
    """The texts that one schema got."""
    way = WAYS[number % len(WAYS)]
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Give an example with {', '.join(schema['properties'])} as JSON."}],
        "max_tokens": MOST_TOKENS,
        "temperature": 0 if way == "greedy" else 0.8,
        "seed": number,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
    }
    if way == "streamed":
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**body, stream=True)]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        return {"way": way, "texts": [(text, chunks[-1].finish_reason)], "tokens": len(chunks)}
    answer = client.chat.completions.create(**body, n=2 if way == "two choices" else 1)
    texts = [(choice.message.content, choice.finish_reason) for choice in answer.choices]
    return {"way": way, "texts": texts, "tokens": answer.usage.completion_tokens if answer.usage else 0}


def told(schemas: list[dict[str, Any]], answers: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """How many answers are valid, and what the others are."""
    bad, cut, valid, total = [], 0, 0, 0
    for schema, answer in zip(schemas, answers, strict=True):
        check = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        for text, finish in answer["texts"]:
            total += 1
            if finish == "stop" and check.is_valid(json.loads(text)):
                valid += 1
            elif finish == "length":
                cut += 1
                bad.append({"way": answer["way"], "end": text[-80:], "finish": finish})
            else:
                bad.append({"way": answer["way"], "text": text, "finish": finish, "schema": schema})
    tokens = sum(answer["tokens"] for answer in answers)
    return {
        "schemas": len(schemas),
        "answers": total,
        "valid": valid,
        "cut_by_the_limit": cut,
        "seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "faults": bad,
    }


def masks(home: Path, schemas: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds to compile a schema, and microseconds of a mask, from grammar to a row of logits; CPU time."""
    folder = installed_folder(home, MODEL)
    tokenizer = load_chat_tokenizer(folder)
    grammars = Grammars(folder / "tokenizer.json", vocabulary=VOCABULARY)
    grammars.begin("%llguidance {}\nstart: /a/\n", tokenizer.stop_ids)  # reads the tokenizer
    logits = torch.zeros(VOCABULARY)
    compiling, masking = [], []
    for schema, answer in zip(schemas, answers, strict=True):
        grammar = answer_grammar(AnswerFormat(schema=schema, strict=True), None, GENERIC)
        assert grammar is not None
        begun = time.thread_time()
        constraint = grammars.begin(grammar, tokenizer.stop_ids)
        compiling.append(1e3 * (time.thread_time() - begun))
        for token in tokenizer.encode(answer["texts"][0][0]):
            begun = time.thread_time()
            allowed = constraint.allowed()
            assert allowed is not None
            logits.masked_fill(forbidden_tokens(allowed, logits), -torch.inf)
            constraint.accept(token)
            masking.append(1e6 * (time.thread_time() - begun))
    return {
        "compile_ms": {"median": round(statistics.median(compiling), 2), "most": round(max(compiling), 2)},
        "mask_us": {
            "median": round(statistics.median(masking)),
            "p99": round(statistics.quantiles(masking, n=100)[98]),
            "tokens": len(masking),
        },
    }


def lengths_told(client: OpenAI) -> dict[str, Any]:
    """Milliseconds a token of one client's answers of 128 tokens, free and held to a schema, A-B-A-B."""
    long = {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 200}
    schema = {"type": "object", "properties": {"a": long}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    times: dict[str, list[float]] = {"free": [], "held": []}
    for turn in range(8):
        kind = ("free", "held")[turn % 2]
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Tell a long story about a smith."}],
            "max_tokens": 128,
            "temperature": 0.8,
            "seed": turn,
            # Nothing ends it early.
            "logit_bias": {"2": -100} if kind == "free" else {},
        }
        if kind == "held":
            body["response_format"] = form
        begun = time.perf_counter()
        answer = client.chat.completions.create(**body)
        assert answer.usage is not None
        times[kind].append(1e3 * (time.perf_counter() - begun) / answer.usage.completion_tokens)
    return {"ms_per_token": {kind: round(statistics.median(found), 2) for kind, found in times.items()}}


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """`smedje serve` on a free port; its base URL for clients."""
    log = home / "server.log"
    env = {**os.environ, "SMEDJE_HOME": str(home), "SMEDJE_BOOTSTRAP_API_KEY": KEY, "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "smedje.cli", "serve", "--port", "0"]
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        while not (said := re.search(rb"ready at (http://\S+)", log.read_bytes())):
            if process.poll() is not None:
                raise SystemExit(log.read_text(encoding="utf-8"))
            time.sleep(0.05)
        yield f"{said[1].decode()}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


if __name__ == "__main__":
    main()
