"""`smedje models export` against a live server: adapter, merged folder and GGUF file of a fine-tuned model."""

import json
from pathlib import Path

import pytest
import torch
from tests.api_server import TINY, Server, chat_lines, make_project
from tests.contract.engine_suite import write_adapter

from smedje.cli.main import run
from smedje.domain.catalog import FineTunedModel
from smedje.domain.jobs import Checkpoint, FineTuningJob, JobRequest, JobStatus
from smedje.modeling.adapter import load_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.folder import model_folder
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import merge_into
from smedje.store import catalog as model_rows
from smedje.store import files as file_rows
from smedje.store import jobs as job_rows

NAME = f"ft:{TINY}:default:mine:abcd1234"
KEY = "runs/run-export/checkpoints/0000000007"


@pytest.fixture(scope="module")
def tuned(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model in the server's storage, with its job and checkpoint; the adapter's folder."""
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(load_decoder(model_folder(server.ctx.home, TINY)), folder, seed=5, size=0.05)
    for file in folder.iterdir():
        server.ctx.objects.put(f"{KEY}/{file.name}", file.read_bytes())
    request = JobRequest(model=TINY, base_model=TINY, training_file=server.upload(chat_lines(12)), seed=11)
    job = FineTuningJob(
        id="ftjob-abcd1234",
        project_id=server.project.id,
        request=request,
        status=JobStatus.SUCCEEDED,
        created_at=4,
        fine_tuned_model=NAME,
        resolved={"n_epochs": 3, "learning_rate": 0.0003},
        trained_tokens=1234,
    )
    model = FineTunedModel(
        id=NAME,
        project_id=server.project.id,
        base_model=TINY,
        job_id=job.id,
        suffix="mine",
        checkpoint_key=KEY,
        step=7,
        created_at=5,
    )
    checkpoint = Checkpoint(
        id="ftckpt_1",
        project_id=server.project.id,
        job_id=job.id,
        step=7,
        model_name=f"{NAME}:ckpt-step-7",
        key=KEY,
        metrics={"train_loss": 1.5, "full_valid_loss": 1.75},
        created_at=5,
    )
    with server.ctx.database.transaction() as tx:
        job_rows.insert_job(tx, job)
        job_rows.insert_checkpoint(tx, checkpoint)
        model_rows.insert_model(tx, model)
    return folder


@pytest.fixture(autouse=True)
def _client(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("SMEDJE_BASE_URL", server.url)
    monkeypatch.setenv("SMEDJE_API_KEY", server.key)
    monkeypatch.setenv("SMEDJE_HOME", str(server.ctx.home))


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """What a model folder says after a few tokens, with an adapter folded in."""
    model = load_decoder(folder)
    if adapter is not None:
        merge_into(model, *load_adapter(adapter))
    tokens = torch.arange(5, 30)
    with torch.inference_mode():
        return model.head(model.forward(tokens, torch.arange(25), DocumentAttention([25])))


@pytest.mark.parametrize("name", [NAME, f"{NAME}:ckpt-step-7"])
def test_an_adapter_is_exported_with_its_card(server: Server, tuned: Path, tmp_path: Path, name: str) -> None:
    """The two files are the stored bytes; the card names base, data digest, settings and metrics."""
    assert run(["models", "export", name, str(tmp_path / "out")]) == 0
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tuned / file).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    uploaded = server.client().files.list().data[0]
    with server.ctx.database.transaction() as tx:
        stored = file_rows.get_file(tx, server.project.id, uploaded.id)
    assert stored is not None
    for told in (
        f"base_model: {TINY}",
        stored.sha256,
        "| learning_rate | 0.0003 |",
        "| full_valid_loss | 1.75 |",
        "1,234 tokens",
    ):
        assert told in card
    assert "question 1" not in card


def test_a_merged_folder_is_exported(
    server: Server, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder says what base and adapter say; --json lists the files; a place that is taken is refused."""
    out = tmp_path / "merged"
    assert run(["models", "export", NAME, str(out), "--format", "merged", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(file["path"]).name for file in told["files"]} >= {"model.safetensors", "config.json", "README.md"}
    expected = logits(model_folder(server.ctx.home, TINY), tuned)
    assert float((logits(out) - expected).abs().max()) < 1e-4
    assert run(["models", "export", NAME, str(out), "--format", "merged"]) != 0
    assert "exists already" in capsys.readouterr().err


def test_wrong_exports_are_refused_in_one_line(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base model has no adapter, an unknown model is not found, a tokenizer without a GGUF name is said."""
    wrong = [
        (["models", "export", TINY, str(tmp_path / "a")], "no adapter"),
        (["models", "export", "ft:x:default::abcd9999", str(tmp_path / "b")], "no model"),
        (["models", "export", NAME, str(tmp_path / "c"), "--type", "f16"], "kept in f32"),
        (["models", "export", NAME, str(tmp_path / "d.gguf"), "--format", "gguf", "--type", "bf16"], "f32 or f16"),
    ]
    for words, part in wrong:
        assert run(words) != 0
        assert part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_is_exported(tuned: Path, tmp_path: Path) -> None:
    """One file and a Modelfile that names it."""
    assert run(["models", "export", NAME, str(tmp_path / "m" / "tuned.gguf"), "--format", "gguf"]) == 0
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"tuned.gguf", "Modelfile", "README.md"}
    assert (tmp_path / "m" / "tuned.gguf").read_bytes()[:4] == b"GGUF"


def test_only_the_models_own_files_are_handed_out(server: Server, tuned: Path) -> None:
    """Only the two files and the card are handed out; a base model has none."""
    assert server.get(f"/api/models/{NAME}/files/manifest.json").status_code == 404
    assert server.get(f"/api/models/{TINY}/files").status_code == 400
    names = [file["name"] for file in server.get(f"/api/models/{NAME}/files").json()["data"]]
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_another_project_finds_nothing(server: Server, tuned: Path) -> None:
    """A key of another project gets 404 for the model's files, whatever dialect it asks in."""
    secret = make_project(server.ctx, "stranger")[1]
    question = {"messages": [{"role": "user", "content": "hi"}]}
    assert server.get(f"/api/models/{NAME}/files", key=secret).status_code == 404
    assert server.get(f"/api/models/{NAME}/files/README.md", key=secret).status_code == 404
    assert server.get(f"/openai/models/{NAME}", key=secret).status_code == 404
    assert server.get("/openai/fine_tuning/jobs/ftjob-abcd1234", key=secret).status_code == 404
    assert server.get("/openai/fine_tuning/jobs/ftjob-abcd1234/checkpoints", key=secret).status_code == 404
    assert server.post(f"/openai/deployments/{NAME}/chat/completions", question, key=secret).status_code == 404
