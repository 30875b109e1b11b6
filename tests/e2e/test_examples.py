"""The code that the README and examples/ show runs against a live server; only address, key and model are put in."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server_process import KEY, MODEL, ServerProcess, server_home
from tests.training_runs import chat_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a tiny base model."""
    process = ServerProcess(server_home(tmp_path_factory.mktemp("examples")))
    process.start()
    yield process
    process.stop()


def run(server: ServerProcess, words: list[str], folder: Path) -> str:
    """What the program prints, once it has ended well."""
    env = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


def test_the_readmes_code_runs(server: ServerProcess, tmp_path: Path) -> None:
    """The golden path as the README shows it ends with an answer of the tuned model, told of on the way."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for shown, here in (
        ("http://127.0.0.1:8321/v1", f"{server.url}/v1"),
        ('api_key="..."', f'api_key="{KEY}"'),
        ("smollm2-135m-instruct", MODEL),
        ("time.sleep(5)", "time.sleep(0.1)"),
    ):
        assert shown in block
        block = block.replace(shown, here)
    (tmp_path / "support.jsonl").write_bytes(chat_rows(12))
    (tmp_path / "golden.py").write_text(block + "\nprint(job.status, answer.model)\n", encoding="utf-8")
    told = run(server, ["golden.py"], tmp_path).splitlines()
    assert re.fullmatch(rf"succeeded ft:{MODEL}:default:support:\w+", told[-1])


def test_the_official_clients_example_runs(server: ServerProcess, tmp_path: Path) -> None:
    """examples/openai_client.py goes through its whole story: both request forms, results, plain and streamed answers,
    a deployment, a refused deletion, and a clean end."""
    data = tmp_path / "rows.jsonl"
    data.write_bytes(chat_rows(12))
    more = ["--model", MODEL, "--epochs", "1", "--train", str(data), "--validation", str(data)]
    told = run(server, [str(ROOT / "examples" / "openai_client.py"), *more], tmp_path)
    for words in ("with top-level hyperparameters", "checkpoint at step", "streaming:", "not deleted while deployed:"):
        assert words in told
    assert told.splitlines()[-1].startswith("deleted ft:")
