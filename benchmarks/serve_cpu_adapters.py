"""Random LoRA adapters for benchmarks/serve_cpu.py: as fine-tuned models with deployments, or as plain folders.

python benchmarks/serve_cpu_adapters.py BASE TARGET COUNT [--plain]: rank 16 on all linears, adapter-0, adapter-1, ...
"""

import argparse
from pathlib import Path

import torch

from smedje.domain.catalog import FineTunedModel
from smedje.domain.jobs import FineTuningJob, JobRequest, JobStatus
from smedje.modeling.adapter import save_adapter
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.transformer import CausalDecoder
from smedje.services.deployments import create_deployment
from smedje.services.projects import ensure_defaults
from smedje.settings import load_settings
from smedje.store import catalog as model_rows
from smedje.store import jobs as job_rows
from smedje.wiring import open_context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("target", type=Path, help="state folder, or with --plain the folder for the adapters")
    parser.add_argument("count", type=int)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    model = load_decoder(options.base)
    for number in range(options.count):
        write_adapter(model, options.target / f"adapter-{number}", seed=number, base=options.base.name)
    if not options.plain:
        register(options.base.name, options.target, options.count)


def write_adapter(model: CausalDecoder, folder: Path, *, seed: int, base: str) -> None:
    """One adapter that changes what is said."""
    config = AdapterConfig(rank=16, alpha=32.0, targets=targets_of(model.slots))
    generator = torch.Generator().manual_seed(seed)
    weights = TrainableLora(model.slots, config, generator=generator).weights()
    for name, tensor in weights.items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.002, generator=generator)
    save_adapter(folder, weights, config, base)


def register(base: str, home: Path, count: int) -> None:
    """Each adapter as a fine-tuned model of the default project, deployed under its folder's name."""
    settings = load_settings()
    ctx = open_context(settings)
    project = ensure_defaults(ctx, settings.bootstrap_api_key, "local").project
    for number in range(count):
        name, key = f"adapter-{number}", f"benchmark/adapter-{number}"
        for file in (home / name).iterdir():
            ctx.objects.put(f"{key}/{file.name}", file.read_bytes())
        tuned = f"ft:{base}:{project.name}:{name}:{number:08d}"
        request = JobRequest(model=base, base_model=base, training_file="file-none")
        job = FineTuningJob(
            id=f"ftjob-{number:08d}",
            project_id=project.id,
            request=request,
            status=JobStatus.SUCCEEDED,
            created_at=1,
            fine_tuned_model=tuned,
        )
        model = FineTunedModel(
            id=tuned,
            project_id=project.id,
            base_model=base,
            job_id=job.id,
            suffix=name,
            checkpoint_key=key,
            step=1,
            created_at=1,
        )
        with ctx.database.transaction() as tx:
            job_rows.insert_job(tx, job)
            model_rows.insert_model(tx, model)
        create_deployment(ctx, project, name=name, model=tuned)
    ctx.database.close()


if __name__ == "__main__":
    main()
