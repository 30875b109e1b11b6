"""`smedje demo`: the whole way once, from a base model to an answer from your own, through the public API alone.

Knows the order of the steps and what to show; every step is a request that any client could make.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smedje.cli.output import JsonFlag, note, print_json, say
from smedje.errors import Unavailable

if TYPE_CHECKING:
    from smedje.cli.client import Client

BASE_MODEL = "smollm2-135m-instruct"
DEPLOYMENT = "support"
START_SECONDS = 60
STOP_SECONDS = 30


def demo(
    home: Annotated[Path, typer.Option("--home", help="State folder of the demo.")] = Path(".smedje"),
    model: Annotated[str, typer.Option("--model", help="Base model to tune.")] = BASE_MODEL,
    epochs: Annotated[str, typer.Option("--epochs", help="Passes over the sample data, or auto.")] = "2",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running at the end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune, evaluate and deploy a small model on the sample support conversations, and ask it a question."""
    from smedje.cli.models import pull_model

    home = home.resolve()
    started = time.monotonic()
    tell = _quiet if as_json else say
    tell(f"1. base model {model}, kept in {home / 'models'}")
    pull_model(home, model)
    tell("2. server")
    with running_server(home, keep=keep) as (client, process):
        tell(f"   {client.base_url}  (schema at /openapi.json, key in {home / 'owner_key'})")
        facts = _go(client, model, epochs, as_json=as_json)
        facts |= {"url": client.base_url, "home": str(home), "seconds": round(time.monotonic() - started, 1)}
        facts["server_pid"] = process.pid if keep else None
    if as_json:
        print_json(facts)
    else:
        _close(facts, home, keep=keep)


def _go(client: "Client", model: str, epochs: str, *, as_json: bool) -> dict[str, Any]:
    from smedje.cli.deployments import deploy
    from smedje.cli.estimate import estimate_fields
    from smedje.cli.files import upload_file
    from smedje.cli.report import print_report
    from smedje.samples import support_heldout_path, support_train_path

    tell = _quiet if as_json else say
    training, heldout = (upload_file(client, path) for path in (support_train_path(), support_heldout_path()))
    tell(f"3. data: {training['filename']} is {training['id']}, {heldout['filename']} is {heldout['id']}")
    if not as_json:
        print_report(client.get(f"/api/files/{training['id']}/report"), shown=5)
    request = {
        "model": model,
        "training_file": training["id"],
        "validation_file": heldout["id"],
        "suffix": "demo",
        "seed": 7,
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": epochs if epochs == "auto" else int(epochs)}},
        },
    }
    estimate = client.post("/api/fine_tuning/estimate", request)
    tell("4. estimate")
    for name, value in estimate_fields(estimate).items():
        tell(f"   {name}: {value}")
    tell("5. fine-tuning; Ctrl-C stops the demo")
    job, losses = _train(client, request, as_json=as_json)
    tell(f"   {job['fine_tuned_model']}, {job['trained_tokens']} tokens trained")
    evaluation = {"base": _scores(losses[0]), "tuned": _scores(losses[-1])} if losses else {}
    tell("6. held-out conversations, which it has not seen")
    for name, scores in evaluation.items():
        tell(f"   {name:<5}  loss {scores['loss']:.3f}  perplexity {scores['perplexity']:.2f}")
    name = _free_name(client)
    deploy(client, name, job["fine_tuned_model"])
    tell(f"7. deployed as {name}; the same question to both")
    answers = _compare(client, model, name, as_json=as_json)
    return {
        "job": job["id"],
        "fine_tuned_model": job["fine_tuned_model"],
        "deployment": name,
        "evaluation": evaluation,
        "estimate": estimate,
        "answers": answers,
    }


def _train(client: "Client", request: Mapping[str, Any], *, as_json: bool) -> tuple[dict[str, Any], list[float]]:
    from smedje.cli.jobs import JOBS
    from smedje.cli.output import shows_progress
    from smedje.cli.watch import as_bar, as_lines, follow, metrics_of

    losses: list[float] = []

    def observed() -> Iterator[dict[str, Any]]:
        for item in follow(client, client.post(JOBS, request)["id"]):
            loss = (metrics_of(item) or {}).get("full_valid_loss")
            if isinstance(loss, int | float):
                losses.append(float(loss))
            yield item

    if as_json:
        *_, job = observed()
    else:
        job = as_bar(observed()) if shows_progress() else as_lines(observed())
    if job["status"] != "succeeded":
        error = job.get("error") or {}
        raise Unavailable(f"The job {job['id']} ended as {job['status']}: {error.get('message') or 'no reason given'}")
    return job, losses


def _scores(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": math.exp(loss)}


def _free_name(client: "Client") -> str:
    taken = {deployment["name"] for deployment in client.get("/api/deployments")["data"]}
    names = (DEPLOYMENT if number == 1 else f"{DEPLOYMENT}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _compare(client: "Client", base: str, tuned: str, *, as_json: bool) -> dict[str, str]:
    from smedje.cli.chat import COMPLETIONS, stream_answer
    from smedje.samples import DEMO_QUESTION, SYSTEM_PROMPT

    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": DEMO_QUESTION}]
    answers: dict[str, str] = {}
    if not as_json:
        say(f"   question: {DEMO_QUESTION}")
    for role, model in (("base", base), ("tuned", tuned)):
        request = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 120}
        if as_json:
            answers[role] = client.post(COMPLETIONS, request)["choices"][0]["message"]["content"]
        else:
            print(f"   {role}: ", end="", flush=True)
            answers[role] = stream_answer(client, request)
    return answers


def _close(facts: Mapping[str, Any], home: Path, *, keep: bool) -> None:
    say(f"done in {facts['seconds']:.0f} s; everything lies in {home}")
    if keep:
        say(f"the server goes on at {facts['url']}; stop it with: kill {facts['server_pid']}")
        where = f"SMEDJE_HOME={home} SMEDJE_BASE_URL={facts['url']} "
    else:
        say(f"start the server again with: SMEDJE_HOME={home} smedje serve")
        where = f"SMEDJE_HOME={home} "
    say(f'then ask it with: {where}smedje chat --model {facts["deployment"]} "..."')


@contextmanager
def running_server(home: Path, *, keep: bool) -> "Iterator[tuple[Client, subprocess.Popen[bytes]]]":
    """A server process of this product on a free loopback port with its own state folder, and a client for it.

    Stopped at the end, unless `keep` and all went well. Raises Unavailable when it does not come up.
    """
    from smedje.cli.client import Client, read_owner_key

    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith("SMEDJE_")}
    command = [sys.executable, "-m", "smedje.cli", "serve", "--port", "0", "--json"]
    log.touch()
    before = log.stat().st_size
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            env={**env, "SMEDJE_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # Ctrl-C is for the demo; it ends its server itself.
            start_new_session=True,
        )
    good = False
    try:
        url = _url_when_ready(process, log, before)
        with Client(url, read_owner_key(home)) as client:
            yield client, process
        good = True
    finally:
        if not (keep and good):
            stop(process)


def _url_when_ready(process: "subprocess.Popen[bytes]", log: Path, before: int) -> str:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_bytes()[before:].splitlines():
            if line.startswith(b'{"url":') and line.endswith(b"}"):
                return str(json.loads(line)["url"])
        time.sleep(0.05)
    raise Unavailable(f"The server did not start; its reason is at the end of {log}.", code="server_not_started")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a server and whatever it started: ask, wait half a minute, then insist.

    A server that stops leaves its training workers to the next one; nobody will start a next one here.
    """
    import psutil

    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        note("the server did not stop by itself; ending it")
        process.kill()
        process.wait()
    for child in started:
        _end(child.terminate)
    for child in psutil.wait_procs(started, timeout=STOP_SECONDS)[1]:
        _end(child.kill)


def _end(ask: Callable[[], None]) -> None:
    import psutil

    # It may have ended by itself meanwhile, which is what was wanted.
    with suppress(psutil.NoSuchProcess):
        ask()


def _quiet(_: str) -> None:
    """Takes the place of a line of text where the output is JSON."""
