"""Preference training: the loss is that of the paper, the reference stays frozen, a resume repeats every byte."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from tests.training_runs import Bench, bench, preference_rows

from smedje.data.batches import flat_batch
from smedje.data.preference import PreferenceDataset
from smedje.modeling.adapter import adapter_files
from smedje.objects.run_folder import RunFolder
from smedje.training.checkpoint import save_checkpoint, save_state
from smedje.training.loop import State, train
from smedje.training.objectives import preference, supervised, to_tensors
from smedje.training.spec import DataSpec, LoraSpec, ObjectiveSpec
from smedje.training.worker import Reporter, train_run

BETA = 0.3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    here = bench(tmp_path_factory.mktemp("dpo"))
    here.objects.put("data/pairs", preference_rows(20))
    data = DataSpec(training_key="data/pairs", validation_fraction=0.25, max_tokens=400)
    return here.with_spec(
        data=data, objective=ObjectiveSpec(kind="dpo", beta=BETA), lora=LoraSpec(rank=4, alpha=8.0, dropout=0.1)
    )


def adapter_bytes(state: State) -> bytes:
    return adapter_files(state.lora.weights(), state.lora.config, "tiny")["adapter_model.safetensors"]


def pairs_of(dataset: object) -> PreferenceDataset:
    assert isinstance(dataset, PreferenceDataset)
    return dataset


def test_loss_is_that_of_the_paper(place: Bench) -> None:
    """Equation 7 of Rafailov et al., from each answer's likelihood alone, with the base model as the reference."""
    _, state = place.with_spec(max_steps=3).train()
    state.lora.eval()
    dataset = pairs_of(place.prepare()[0].training.dataset).answers

    def likelihood(row: int, lora: object) -> float:
        batch = to_tensors(flat_batch(dataset, [row]), "cpu")
        with torch.no_grad():
            return -float(supervised(state.decoder, lora, batch).loss)  # type: ignore[arg-type]

    rewards = [BETA * (likelihood(row, state.lora) - likelihood(row, None)) for row in range(6)]
    margins = torch.tensor(rewards[0::2]) - torch.tensor(rewards[1::2])
    batch = to_tensors(flat_batch(dataset, range(6)), "cpu")
    found = preference(state.decoder, state.lora, None, batch, beta=BETA)
    assert float(found.loss.detach()) == pytest.approx(float(-torch.log(torch.sigmoid(margins)).sum()), rel=1e-4)
    assert found.figures["reward_margin"] == pytest.approx(float(margins.sum()), abs=1e-4)
    assert found.figures["chosen_reward"] == pytest.approx(sum(rewards[0::2]), abs=1e-4)
    assert (found.weight, found.count, found.correct) == (3.0, 3, int((margins > 0).sum()))


def test_training_learns_the_preference(place: Bench) -> None:
    """It starts at log 2, the loss falls, and held-out pairs are ranked with a margin."""
    records, _ = place.with_spec(n_epochs=4).train()
    assert records[0].full_valid_loss == pytest.approx(0.6931, abs=1e-3)
    assert records[1].train_loss == pytest.approx(0.6931, abs=2e-2)
    last = records[-1]
    assert last.full_valid_loss is not None
    assert last.full_valid_accuracy is not None
    assert last.full_valid_loss < 0.6
    assert last.full_valid_accuracy >= 0.8
    assert last.more["full_valid_reward_margin"] > 0


def test_beta_acts(place: Bench) -> None:
    """Another beta ends with another adapter."""
    ends = [
        adapter_bytes(place.with_spec(max_steps=3, objective=ObjectiveSpec(kind="dpo", beta=beta)).train()[1])
        for beta in (0.1, 0.5)
    ]
    assert ends[0] != ends[1]


def test_small_streams_equal_one_big_stream(place: Bench) -> None:
    """A pair in a stream of its own gives the gradient that it gives beside others."""
    still = place.with_spec(max_steps=1, lora=LoraSpec(rank=4, alpha=8.0))
    norms = [still.with_spec(micro_batch_tokens=tokens).train()[0][1].grad_norm for tokens in (1, 100_000)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("stop_after", [2, 5])
def test_resume_is_byte_identical(place: Bench, stop_after: int) -> None:
    """Stop, load the saved state into fresh objects, finish: the bytes of a run that never stopped."""
    _, straight = place.train()
    folder = place.folder(f"run-stop{stop_after}")
    job, first = place.prepare()
    list(islice(train(job, first), stop_after + 1))
    save_state(place.objects, folder, first)
    job, second = place.with_spec(earlier_runs=(folder.run_id,)).prepare()
    assert second.step == stop_after
    assert list(train(job, second))
    assert adapter_bytes(second) == adapter_bytes(straight)


def test_continuing_takes_the_tuned_model_as_reference(place: Bench) -> None:
    """Training that goes on from an adapter measures rewards against that adapter: it starts at log 2 again."""
    _, state = place.train()
    key = save_checkpoint(place.objects, place.folder("run-first"), state, base_model="tiny", metrics={})
    again = place.with_spec(lora=LoraSpec(rank=4, alpha=8.0, dropout=0.1, initial=key))
    records, second = again.train()
    assert records[0].full_valid_loss == pytest.approx(0.6931, abs=1e-4)
    assert second.reference is not None
    kept = second.reference.weights()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.lora.weights().items())


def test_the_worker_reports_rewards(place: Bench, tmp_path: Path) -> None:
    """Step events carry reward accuracy and margin in place of token accuracy, speeds and memory."""
    folder = place.folder("run-worker")
    result = train_run(place.objects, folder, Reporter(folder), cache=tmp_path)
    assert result.step == 2 * 4
    folder = RunFolder(place.objects, "run-told")
    folder.write_spec(place.objects.get("runs/run-worker/spec.json"))
    reporter = Reporter(folder)
    train_run(place.objects, folder, reporter, cache=tmp_path)
    reporter.flush()
    steps = [event.data for event in folder.read_events("")[0] if event.kind == "step"]
    for name in ("train_reward_accuracy", "train_reward_margin", "memory_bytes", "computed_tokens_per_second"):
        assert all(name in step for step in steps), name
    assert "train_mean_token_accuracy" not in json.dumps(steps)
    assert all(
        s["computed_tokens_per_second"] > s["tokens_per_second"] > s["labelled_tokens_per_second"] for s in steps
    )
