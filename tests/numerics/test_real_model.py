"""The real embedded model: a few training steps, and the trained adapter in peft on the transformers model."""

from pathlib import Path

import msgspec
import pytest
import torch
from tests.training_runs import Bench, bench

from smedje.modeling.adapter import save_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.samples import support_train_path
from smedje.training.loop import State, train
from smedje.training.run import prepare
from smedje.training.spec import DataSpec, OptimizerSpec, TrainingSpec


def on_samples(root: Path, home: Path, model: str, **changes: object) -> Bench:
    """The first sixteen sample conversations on an installed base model: three steps of four."""
    place = bench(root)
    rows = support_train_path().read_bytes().splitlines(keepends=True)[:16]
    place.objects.put("data/samples", b"".join(rows))
    spec = TrainingSpec(
        job_id="ftjob-real",
        base_model=model,
        base_folder=str(home / "models" / model),
        seed=3,
        today="2026-01-31",
        data=DataSpec(training_key="data/samples", validation_fraction=0.25),
        n_epochs=1,
        batch_size=4,
        max_steps=3,
        optimizer=OptimizerSpec(base_learning_rate=1e-3),
        threads=2,
    )
    return Bench(root=root, objects=place.objects, spec=msgspec.structs.replace(spec, **changes))


def peft_difference(place: Bench, state: State, folder: Path) -> float:
    """Largest difference of logits: our decoder and adapter against peft on the transformers model, both fp32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    save_adapter(folder, state.lora.weights(), state.lora.config, place.spec.base_model)
    base = AutoModelForCausalLM.from_pretrained(place.spec.base_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    job, _ = prepare(place.objects, place.spec, cache=place.root / "cache")
    tokens = torch.tensor(job.training.dataset.example(0)[0].tolist())
    state.lora.eval()
    with torch.inference_mode():
        attend = DocumentAttention([len(tokens)], state.decoder.shape.windows)
        ours = state.decoder.head(state.decoder.forward(tokens, torch.arange(len(tokens)), attend, state.lora))
        theirs = model(input_ids=tokens[None]).logits[0]
    return float((ours - theirs).abs().max())


@pytest.mark.slow
def test_three_steps_of_the_embedded_model(model_home: Path, tmp_path: Path) -> None:
    """SmolLM2-135M learns from twelve sample rows in three steps, and peft computes the same with the adapter.

    Two correct fp32 computations of this model differ by 1e-4 on logits up to 40 (each is that far from fp64).
    """
    place = on_samples(tmp_path, model_home, "smollm2-135m-instruct")
    job, state = place.prepare()
    records = list(train(job, state))
    print([r.train_loss for r in records], [r.full_valid_loss for r in records])
    assert records[-1].full_valid_loss is not None
    assert records[0].full_valid_loss is not None
    assert records[-1].full_valid_loss < records[0].full_valid_loss - 0.1
    difference = peft_difference(place, state, tmp_path / "adapter")
    print(f"smollm2-135m-instruct, trained adapter, ours against peft: {difference:.2e}")
    assert difference <= 3e-4


@pytest.mark.slow
def test_trained_phi3_adapter_in_peft(model_home: Path, tmp_path: Path) -> None:
    """The same on Phi-3's fused layout with its real tokenizer: logits within 1e-4."""
    place = on_samples(
        tmp_path, model_home, "phi-3-tiny-random", optimizer=OptimizerSpec(base_learning_rate=1e-2), n_epochs=5
    )
    place = place.with_spec(max_steps=None)
    job, state = place.prepare()
    records = list(train(job, state))
    assert (records[-1].train_loss or 0) < (records[1].train_loss or 0)
    difference = peft_difference(place, state, tmp_path / "adapter")
    print(f"phi-3-tiny-random, trained adapter, ours against peft: {difference:.2e}")
    assert difference <= 1e-4
