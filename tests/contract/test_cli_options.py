"""Options of the command line that change what a command does: each is seen in the result, none is only accepted."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.api_server import TINY, Server, chat_lines
from tests.cli_terminal import Terminal
from tests.contract.test_api_deployments import tuned
from tests.training_runs import preference_rows

from smedje.domain.jobs import Checkpoint
from smedje.store import jobs as job_rows


def chat(question: str, answer: str) -> bytes:
    """One line of a training file."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}).encode() + b"\n"


def answered(path: str) -> list[str]:
    """The answers of a training file, in order."""
    return [json.loads(line)["messages"][-1]["content"] for line in Path(path).read_text("utf-8").splitlines()]


LONG = chat("Tell all", "word " * 500)  # more tokens than jobs take by default, in bytes
UNEVEN = b"".join(chat(f"Text number {n}", "no" if n % 20 == 0 else "yes") for n in range(60))


def test_a_deployment_changes_by_its_options(smedje: Terminal, server: Server) -> None:
    """A canary with its share, another model, back by one and to a named revision; keys, a question, a language."""
    model = tuned(server, "CliMoves")
    smedje("deployments", "create", "moving", "--model", TINY)
    changed = smedje.json("deployments", "update", "moving", "--canary", model, "--percent", "30")
    assert (changed["canary"]["model"], changed["canary"]["percent"]) == (model, 30)
    assert smedje.json("deployments", "update", "moving", "--percent", "0")["canary"] is None
    assert smedje.json("deployments", "update", "moving", "--model", model)["model"] == model
    assert smedje.json("deployments", "rollback", "moving")["model"] == TINY
    assert smedje.json("deployments", "rollback", "moving", "--revision", "2")["model"] == model
    assert smedje.json("deployments", "rollback", "moving")["model"] == TINY
    assert len(smedje.json("deployments", "revisions", "moving")["data"]) == 5
    short, long = (
        smedje.json("deployments", "test", "moving", "--message", words)["prompt_tokens"]
        for words in ("Hi", "Who is it that rings there?")
    )
    assert short < long
    assert "from openai import" in smedje("deployments", "samples", "moving")
    assert smedje("deployments", "samples", "moving", "--language", "curl").startswith("curl ")
    secret = smedje.json("deployments", "key", "moving", "secondary")["secret"]
    with OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
        question: Any = [{"role": "user", "content": "hi"}]
        assert client.chat.completions.create(model="moving", messages=question, max_tokens=1).choices
    smedje("deployments", "delete", "moving")


def test_what_is_asked_of_a_model(smedje: Terminal) -> None:
    """A system message lengthens the prompt; a seed repeats a draw and another one changes it; 0 draws nothing."""
    words = ["chat", "--model", TINY, "--max-tokens", "12", "hello"]
    bare, instructed = (smedje.json(*words, *more)["usage"] for more in ([], ["--system", "Be brief."]))
    assert bare["completion_tokens"] <= 12
    assert bare["prompt_tokens"] + len("Be brief.") <= instructed["prompt_tokens"]
    hot = [*words, "--temperature", "2"]
    first, same, other = (smedje(*hot, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == same != other
    assert smedje(*words, "--temperature", "0", "--seed", "1") == smedje(*words, "--temperature", "0", "--seed", "2")


def test_a_job_has_the_method_that_is_named(smedje: Terminal) -> None:
    """--method and --beta are in the job; --beta belongs to dpo."""
    pairs = smedje.data("pairs.jsonl", preference_rows(12))
    job = smedje.json("jobs", "create", pairs, "--model", TINY, "--method", "dpo", "--beta", "0.3")
    assert (job["method"]["type"], job["method"]["dpo"]["hyperparameters"]["beta"]) == ("dpo", 0.3)
    smedje("jobs", "create", smedje.data(), "--model", TINY, "--beta", "0.3", code=2)


def test_lists_end_where_they_are_told_to(smedje: Terminal, server: Server) -> None:
    """--limit 1 shows the newest one of files, jobs, checkpoints, deployments, events of the audit log, and users."""
    files = [server.upload(chat_lines(12)) for _ in range(2)]
    for number in (1, 2):
        server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": files[0]})
        server.post("/api/deployments", {"name": f"limited-{number}", "model": TINY})
        server.post("/api/users", {"email": f"limited-{number}@example.org"})
    job = smedje.json("jobs", "list")["data"][0]["id"]
    with server.ctx.database.transaction() as tx:
        for step in (1, 2):
            name = f"ft:{TINY}:default::limited:ckpt-step-{step}"
            kept = Checkpoint(
                id=f"ftckpt-limited-{step}",
                project_id=server.project.id,
                job_id=job,
                step=step,
                model_name=name,
                key=f"runs/none/checkpoints/{step}",
                metrics={},
                created_at=step,
            )
            job_rows.insert_checkpoint(tx, kept)
    for words in (
        ["files", "list"],
        ["jobs", "list"],
        ["jobs", "checkpoints", job],
        ["deployments", "list"],
        ["audit", "list"],
        ["users", "list"],
    ):
        whole, short = smedje.json(*words)["data"], smedje.json(*words, "--limit", "1")["data"]
        assert len(whole) >= 2, words
        assert short == whole[:1], words


def test_a_file_is_kept_for_the_purpose_that_is_named(smedje: Terminal) -> None:
    """--purpose of an upload is the file's, and that of a list leaves out all others."""
    smedje("files", "upload", smedje.data())
    raw = smedje.json("files", "upload", smedje.data("rows.csv", b"a,b\n1,2\n"), "--purpose", "user_data")
    assert raw["purpose"] == "user_data"
    found = smedje.json("files", "list", "--purpose", "user_data")["data"]
    assert raw["id"] in [one["id"] for one in found]
    assert {one["purpose"] for one in found} == {"user_data"}


def test_a_server_file_is_mended_by_what_is_named(smedje: Terminal) -> None:
    """--against drops what the other file holds, --model what is too long for it, --advised what the report names;
    --seed chooses; --limit ends the differences."""
    rows = [chat(f"Question {n}", f"Answer {n}") for n in range(12)]
    held = smedje.json("files", "upload", smedje.data("held.jsonl", b"".join(rows[:11])))["id"]
    more = [chat(f"Other {n}", f"Reply {n} to bo{n}@post.dk") for n in range(12)]
    source = smedje.data("more.jsonl", rows[0] + b"".join(more) + LONG)
    file = smedje.json("files", "upload", source)["id"]
    advice = smedje.json("files", "report", file, "--model", TINY)["insights"]["advice"]
    assert "1 example is longer than 2048 tokens" in " ".join(advice)

    def made(*words: str) -> dict[str, Any]:
        told: dict[str, Any] = smedje.json("files", "repair", file, *words)
        return told

    assert made("--step", "drop_leaks", "--against", held)["made_from"]["dropped"] == {"drop_leaks": 1}
    assert made("--step", "drop_too_long", "--model", TINY)["made_from"]["dropped"] == {"drop_too_long": 1}
    mended = made("--advised")
    assert "redact" in mended["made_from"]["steps"]
    name = mended["file"]["id"]
    assert len(smedje.json("files", "diff", name)["data"]) == 12
    assert len(smedje.json("files", "diff", name, "--limit", "1")["data"]) == 1
    file = smedje.json("files", "upload", smedje.data("uneven.jsonl", UNEVEN))["id"]
    first, same, other = (made("--step", "rebalance", "--seed", seed)["file"]["id"] for seed in ("1", "1", "2"))
    assert smedje("files", "content", first) == smedje("files", "content", same) != smedje("files", "content", other)


def test_an_import_is_read_as_named(smedje: Terminal) -> None:
    """--format decides how rows are read, --name what the new file is called; here and on the server."""
    rows = [json.dumps({"prompt": f"Q{n}", "completion": f"A{n}"}).encode() for n in range(12)]
    source = smedje.data("rows.jsonl", b"\n".join(rows))
    made = smedje.json("files", "import", source, "--format", "prompt-completion", "--name", "mine.jsonl")
    assert made["file"]["filename"] == "mine.jsonl"
    smedje("files", "import", source, "--format", "alpaca", code=1)
    smedje("data", "import", source, "--format", "alpaca", "--out", "never.jsonl", code=1)
    assert not Path("never.jsonl").exists()
    smedje("data", "import", source, "--format", "prompt-completion", "--out", "new.jsonl")
    assert answered("new.jsonl") == [f"A{n}" for n in range(12)]


def test_a_dataset_folders_split_is_named(smedje: Terminal, tmp_path: Path) -> None:
    """--split takes the rows of one split alone."""
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        (tmp_path / "set" / f"{split}.jsonl").write_bytes(chat("Q", f"of {split}"))
    smedje("data", "import", "set", "--split", "test", "--out", "test.jsonl")
    assert answered("test.jsonl") == ["of test"]


def test_data_commands_do_what_their_options_say(smedje: Terminal) -> None:
    """--against, --model and --seed of a repair, --row of a view, --seed of a split."""
    held = smedje.data("held.jsonl", chat("Q1", "A1"))
    source = smedje.data("a.jsonl", b"".join(chat(f"Q{n}", f"A{n}") for n in range(12)) + LONG)
    assert smedje.json("data", "check", source, "--model", TINY, code=1)["problems"][0]["code"] == "example_too_long"
    shown = smedje("data", "check", source, "--model", TINY, code=1)
    assert "tokens an example: 24 █" in shown
    assert "'low'" not in shown

    def repaired(*words: str) -> dict[str, int]:
        told: dict[str, int] = smedje.json("data", "repair", source, "--out", "new.jsonl", *words)["dropped"]
        Path("new.jsonl").unlink()
        return told

    assert repaired("--step", "drop_leaks", "--against", held) == {"drop_leaks": 1}
    assert repaired("--step", "drop_too_long", "--model", TINY) == {"drop_too_long": 1}
    assert "A1⟧" not in smedje("data", "show", source, "--row", "1", "--model", TINY)
    assert "A1" in smedje("data", "show", source, "--row", "2", "--model", TINY)
    uneven = smedje.data("uneven.jsonl", UNEVEN)
    for number, seed in enumerate(("1", "1", "2")):
        smedje("data", "repair", uneven, "--out", f"even-{number}.jsonl", "--step", "rebalance", "--seed", seed)
        smedje("data", "split", source, "--out", f"parts-{number}", "--seed", seed)
    for first, same, other in (
        [Path(f"even-{number}.jsonl").read_bytes() for number in range(3)],
        [Path(f"parts-{number}/validation.jsonl").read_bytes() for number in range(3)],
    ):
        assert first == same != other


@pytest.mark.parametrize("words", [["--model", TINY], ["--row", "1"]])
def test_a_view_needs_row_and_model(smedje: Terminal, words: list[str]) -> None:
    """Neither is guessed."""
    smedje("data", "show", smedje.data(), *words, code=2)
