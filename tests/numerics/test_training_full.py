"""Tuning all weights: a plain loop's losses, exact resume, what it starts from and goes on from, export, memory."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_loop import peer_losses
from reference_models import make_reference
from tests.training_runs import Bench, bench

from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.config import read_decoder_config
from smedje.modeling.export import export_merged
from smedje.modeling.load import load_decoder
from smedje.training.checkpoint import load_latest_state, save_checkpoint, save_state
from smedje.training.full import whole_decoder
from smedje.training.loop import Rows, State, train, validate
from smedje.training.memory import predicted_bytes, weight_parameters
from smedje.training.options import parse_options
from smedje.training.spec import LoraSpec, ObjectiveSpec, OptimizerKind, OptimizerSpec

FULL = LoraSpec(full=True)
RATE = OptimizerSpec(learning_rate=2e-3)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("full")).with_spec(lora=FULL, optimizer=RATE)


def weights_of(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.decoder.export_state().items()}


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_every_step_loses_what_a_plain_loop_loses(family: str, tmp_path: Path) -> None:
    """transformers' model with AdamW over all of its weights has our loss at each of 10 steps, within 1e-4."""
    from transformers import AutoModelForCausalLM

    here = bench(tmp_path, family=family).with_spec(lora=FULL, optimizer=RATE)
    job, state = here.prepare()
    model = AutoModelForCausalLM.from_pretrained(here.spec.base_folder, dtype=torch.float32)
    # The padding token also ends turns here; transformers would leave its embedding out of the gradient.
    model.get_input_embeddings().padding_idx = None
    theirs = peer_losses(model, job)
    ours = [record.train_loss for record in train(job, state) if record.train_loss is not None]
    assert len(ours) == 10
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1e-4
    assert ours[-1] < ours[0]


def test_all_weights_change_and_the_base_model_does_not(place: Bench) -> None:
    """Embeddings, norms and linears are trained; the files of the base model stay, and so does the next job's start."""
    before = load_decoder(Path(place.spec.base_folder)).export_state()
    _, state = place.train()
    after = state.decoder.export_state()
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items())
    again = load_decoder(Path(place.spec.base_folder)).export_state()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "lion"])
def test_a_full_tuning_resumes_exactly(place: Bench, kind: OptimizerKind) -> None:
    """A run that stops and goes on ends with the bytes of one that did not, moments and noise included."""
    optimizer = OptimizerSpec(kind=kind, learning_rate=1e-3)
    here = place.with_spec(optimizer=optimizer, objective=ObjectiveSpec(neftune_alpha=5.0))
    straight = weights_of(here.train()[1])
    folder = here.folder(f"run-{kind}")
    job, first = here.prepare()
    list(islice(train(job, first), 4))
    save_state(here.objects, folder, first)
    job, second = here.with_spec(earlier_runs=(folder.run_id,)).prepare()
    assert second.step == 3
    list(train(job, second))
    resumed = weights_of(second)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())
    damaged = here.objects.get(f"{folder.state_prefix(3)}/state.safetensors")
    here.objects.put(f"{folder.state_prefix(3)}/state.safetensors", damaged[:-1] + bytes([damaged[-1] ^ 1]))
    assert not load_latest_state(here.objects, folder, here.prepare()[1], cache=here.root / "cache")


def test_training_goes_on_from_weights_and_from_adapters(place: Bench) -> None:
    """Step zero of the next full tuning is as good as what it starts from: a full tuning, a LoRA or a DoRA."""
    for number, lora in enumerate((FULL, LoraSpec(rank=4, alpha=8.0), LoraSpec(rank=4, alpha=8.0, dora=True))):
        records, state = place.with_spec(lora=lora).train()
        key = save_checkpoint(place.objects, place.folder(f"run-from{number}"), state, base_model="tiny", metrics={})
        zero = place.with_spec(lora=LoraSpec(full=True, initial=key)).train()[0][0]
        assert zero.full_valid_loss == pytest.approx(records[-1].full_valid_loss, rel=1e-5)


def test_the_export_is_the_tuned_model(place: Bench, tmp_path: Path) -> None:
    """A merged folder made from a checkpoint computes the validation loss that training measured."""
    records, state = place.train()
    key = save_checkpoint(place.objects, place.folder("run-export"), state, base_model="tiny", metrics={})
    export_merged(Path(place.spec.base_folder), place.objects.local_folder(key, tmp_path / "cache"), tmp_path / "out")
    job, other = place.prepare()
    other.decoder = load_decoder(tmp_path / "out")
    assert isinstance(job.validation, Rows)
    measured = validate(job, other, job.validation.indices).loss
    assert measured == pytest.approx(records[-1].full_valid_loss, rel=1e-5)


def test_memory_counts_weights_gradients_and_moments(place: Bench) -> None:
    """Beyond what LoRA takes a full tuning needs its gradients and moments; fewer moments need less."""
    config = read_decoder_config(Path(place.spec.base_folder))
    numbers = 4 * weight_parameters(config)
    lora = predicted_bytes(config, place.with_spec(lora=LoraSpec(rank=1)).spec)
    adamw = predicted_bytes(config, place.spec)
    lion = predicted_bytes(config, place.with_spec(optimizer=OptimizerSpec(kind="lion")).spec)
    assert adamw - lion == numbers
    assert adamw - lora > 3 * numbers


def test_what_has_no_meaning_beside_full_is_refused(tmp_path: Path) -> None:
    """Every knob of the adapter, and Muon; and models that are not computed by our own decoder."""
    given: list[dict[str, Any]] = [
        {"lora_rank": 8},
        {"lora_alpha": 8.0},
        {"lora_dropout": 0.1},
        {"rslora": True},
        {"dora": True},
        {"lora_targets": ["q_proj"]},
        {"lora_layers": -1},
    ]
    for one in given:
        with pytest.raises(InvalidRequest, match=next(iter(one))):
            parse_options({"tuning": "full", **one})
    with pytest.raises(InvalidRequest, match="muon"):
        parse_options({"tuning": "full", "optimizer": "muon"})
    here = bench(tmp_path)
    make_reference("gemma3", tmp_path / "gemma3")
    foreign = here.with_spec(lora=FULL, base_folder=str(tmp_path / "gemma3"))
    with pytest.raises(UnsupportedField, match="Use LoRA"):
        whole_decoder(foreign.objects, foreign.spec, cache=tmp_path / "cache")
