"""The train/serve certificate: what was trained is what is asked, or the deployment is refused."""

import json
from pathlib import Path

import pytest
from tests.api_server import TINY, make_context, make_project

from smedje.domain.catalog import FineTunedModel
from smedje.domain.jobs import FineTuningJob, JobRequest, JobStatus
from smedje.errors import Conflict
from smedje.modeling.folder import model_folder
from smedje.services.certificate import FILE, PROBES, certify, check_certificate
from smedje.services.context import Context
from smedje.services.deployments import create_deployment
from smedje.store import catalog as model_rows
from smedje.store import jobs as job_rows

KEY = "runs/run-1/checkpoints/0000000003"


def job(project_id: str = "proj_x") -> FineTuningJob:
    """A job that has succeeded."""
    request = JobRequest(model=TINY, base_model=TINY, training_file="file-x")
    return FineTuningJob(
        id="ftjob-abcd1234", project_id=project_id, request=request, status=JobStatus.SUCCEEDED, created_at=86_400 * 400
    )


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """A fresh state folder with the tiny base model."""
    return make_context(tmp_path)


def test_the_same_job_gives_the_same_bytes(ctx: Context) -> None:
    """Written twice it is equal to the byte; it holds our probes' ids, the job's own date, and passes its own check."""
    made = certify(ctx, job(), KEY)
    first = ctx.objects.get(f"{KEY}/{FILE}")
    certify(ctx, job(), KEY)
    assert ctx.objects.get(f"{KEY}/{FILE}") == first
    assert len(made.prompts) == len(PROBES)
    assert all(made.prompts)
    assert made.today == "1971-02-05"
    check_certificate(ctx, TINY, KEY)
    check_certificate(ctx, TINY, None)
    check_certificate(ctx, TINY, "runs/without/certificate")


@pytest.mark.parametrize("planted", ["template", "tokenizer", "stop"])
def test_a_planted_mismatch_is_refused_by_name(ctx: Context, planted: str) -> None:
    """Another template, tokenizer or end token is a Conflict that says which, and the deployment is not made."""
    project, _ = make_project(ctx, "p")
    name = f"ft:{TINY}:p::abcd1234"
    with ctx.database.transaction() as tx:
        job_rows.insert_job(tx, job(project.id))
        model = FineTunedModel(
            id=name,
            project_id=project.id,
            base_model=TINY,
            job_id="ftjob-abcd1234",
            suffix="",
            checkpoint_key=KEY,
            step=3,
            created_at=5,
        )
        model_rows.insert_model(tx, model)
    certify(ctx, job(project.id), KEY)
    assert create_deployment(ctx, project, name="before", model=name).adapter_key == KEY
    folder = model_folder(ctx.home, TINY)
    if planted == "template":
        source = folder / "chat_template.jinja"
        config = json.loads((folder / "tokenizer_config.json").read_text())
        was = source.read_text() if source.is_file() else config["chat_template"]
        source.write_text(was + " ")
    elif planted == "tokenizer":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text() + "\n")
    else:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    with pytest.raises(Conflict) as refusal:
        create_deployment(ctx, project, name="after", model=name)
    assert refusal.value.code == "certificate_mismatch"
    word = {"template": "chat template", "tokenizer": "tokenizer", "stop": "tokens that end"}[planted]
    assert word in refusal.value.message
