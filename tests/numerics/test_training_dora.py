"""DoRA and NEFTune: the same numbers as PEFT's DoRA, in training, served and merged; noise in training steps alone."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_loop import peer_losses
from reference_models import flat, largest_difference, make_reference, random_documents, reference_logits
from tests.training_runs import Bench, bench, labelled_rows
from torch import Tensor

from smedje.modeling.adapter import adapter_files, load_adapter, save_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora, merge_into, merged_state
from smedje.modeling.served_adapters import SegmentedLora, ServedAdapter
from smedje.modeling.transformer import CausalDecoder, LowRank
from smedje.training.checkpoint import save_checkpoint, save_state
from smedje.training.loop import State, train
from smedje.training.noise import embedding_noise
from smedje.training.spec import DataSpec, LoraSpec, ObjectiveSpec

LENGTHS = (13, 4, 21)
DOCUMENTS = random_documents(LENGTHS)
NOISE = ObjectiveSpec(neftune_alpha=5.0)
DORA = LoraSpec(rank=4, alpha=8.0, dora=True)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("dora")).with_spec(lora=DORA)


def logits(decoder: CausalDecoder, lora: LowRank | None) -> Tensor:
    """Our logits of the three documents in one stream."""
    tokens, positions = flat(DOCUMENTS)
    return decoder.head(decoder.forward(tokens, positions, DocumentAttention(LENGTHS, decoder.shape.windows), lora))


def trained(decoder: CausalDecoder, config: AdapterConfig) -> TrainableLora:
    """An adapter whose every tensor has moved."""
    generator = torch.Generator().manual_seed(7)
    lora = TrainableLora(decoder.slots, config, generator=generator, base=decoder)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora


def with_peft(base: Path, adapter: Path, *, trainable: bool = False) -> Any:
    """transformers' model with the saved adapter on it, computed by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=trainable)


def adapter_bytes(state: State) -> bytes:
    return adapter_files(state.lora.weights(), state.lora.config, "tiny")["adapter_model.safetensors"]


def test_a_fresh_dora_changes_nothing(tmp_path: Path) -> None:
    """The magnitudes begin as the weights' own row norms, so that step zero is the base model."""
    make_reference("llama-biased", tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    config = AdapterConfig(4, 8.0, targets_of(decoder.slots), dora=True)
    lora = TrainableLora(decoder.slots, config, generator=torch.Generator(), base=decoder)
    with torch.no_grad():
        assert largest_difference(logits(decoder, lora), logits(decoder, None)) <= 1e-5


@pytest.mark.parametrize("family", ["llama-biased", "phi3", "gemma3"])
def test_peft_computes_our_saved_dora_alike(family: str, tmp_path: Path) -> None:
    """PEFT loads the files and has our logits: trained, served beside packed weights, merged in place, and exported."""
    make_reference(family, tmp_path / "base")
    decoder, packed, merged = (load_decoder(tmp_path / "base") for _ in range(3))
    config = AdapterConfig(4, 6.0, targets_of(decoder.slots), dora=True)
    lora = trained(decoder, config)
    save_adapter(tmp_path / "adapter", lora.weights(), config, "tiny")
    theirs = reference_logits(with_peft(tmp_path / "base", tmp_path / "adapter").eval(), DOCUMENTS)
    packed.pack()
    read = load_adapter(tmp_path / "adapter")
    served = ServedAdapter(packed, *read)
    merge_into(merged, *read)
    with torch.no_grad():
        ways = {
            "trained": logits(decoder, lora),
            "one slice": logits(packed, SegmentedLora([(served, torch.arange(sum(LENGTHS)))])),
            "merged": logits(merged, None),
        }
        state = merged_state(decoder, *read)
        scattered = torch.tensor([0, 2, 3, *range(5, sum(LENGTHS))])
        mixed = logits(packed, SegmentedLora([(served, scattered)]))
    assert largest_difference(mixed, theirs) > 1e-3
    for way, found in ways.items():
        assert largest_difference(found, theirs) <= 1e-4, way
    assert all(torch.allclose(state[name], tensor, atol=1e-6) for name, tensor in merged.export_state().items())


def test_gradients_equal_pefts(tmp_path: Path) -> None:
    """Factors and magnitudes get PEFT's gradients, to 1e-4 relative."""
    make_reference("llama-biased", tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    config = AdapterConfig(4, 8.0, targets_of(decoder.slots), dora=True)
    lora = trained(decoder, config)
    save_adapter(tmp_path / "adapter", lora.weights(), config, "tiny")
    model = with_peft(tmp_path / "base", tmp_path / "adapter", trainable=True).eval()
    labels = torch.cat([document.roll(-1) for document in DOCUMENTS])
    torch.nn.functional.cross_entropy(logits(decoder, lora), labels).backward()
    theirs_logits = torch.cat([model(input_ids=document[None]).logits[0] for document in DOCUMENTS])
    torch.nn.functional.cross_entropy(theirs_logits, labels).backward()
    theirs = {
        name.replace(".default", "").replace("vector.weight", "vector"): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    own = {tensor.data_ptr(): name for name, tensor in lora.weights().items()}
    ours = {own[parameter.data_ptr()]: parameter.grad for parameter in lora.parameters()}
    assert set(theirs) == set(ours)
    for name, gradient in ours.items():
        assert gradient is not None
        assert float((gradient - theirs[name]).norm()) <= 1e-4 * float(theirs[name].norm()), name


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_every_step_loses_what_peft_loses(family: str, tmp_path: Path) -> None:
    """From one initial adapter, transformers and PEFT have our loss at each of 10 steps, within 1e-4."""
    here = bench(tmp_path, family=family).with_spec(lora=DORA)
    job, state = here.prepare()
    save_adapter(tmp_path / "adapter", state.lora.weights(), state.lora.config, "tiny")
    theirs = peer_losses(with_peft(Path(here.spec.base_folder), tmp_path / "adapter", trainable=True), job)
    ours = [record.train_loss for record in train(job, state) if record.train_loss is not None]
    assert len(ours) == 10
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1e-4
    plain = here.with_spec(lora=LoraSpec(rank=4, alpha=8.0)).train()[0]
    assert ours[-1] != plain[-1].train_loss


@pytest.mark.parametrize("changes", [{}, {"lora": LoraSpec(rank=4, alpha=8.0, dora=True, dropout=0.1)}])
def test_dora_and_noise_resume_exactly(place: Bench, changes: dict[str, Any]) -> None:
    """A run that stops and goes on ends with the bytes of one that did not, with noise, and with dropout too."""
    here = place.with_spec(objective=NOISE, **changes)
    _, straight = here.train()
    folder = here.folder(f"run-{len(changes)}")
    job, first = here.prepare()
    list(islice(train(job, first), 4))
    save_state(here.objects, folder, first)
    job, second = here.with_spec(earlier_runs=(folder.run_id,)).prepare()
    assert second.step == 3
    list(train(job, second))
    assert adapter_bytes(second) == adapter_bytes(straight)


def test_training_continues_from_a_dora_checkpoint(place: Bench) -> None:
    """Step zero of the next job has the validation loss with which the checkpoint was saved, magnitudes included."""
    records, state = place.train()
    key = save_checkpoint(place.objects, place.folder("run-first"), state, base_model="tiny", metrics={})
    again = place.with_spec(lora=LoraSpec(rank=4, alpha=8.0, dora=True, initial=key)).train()[0]
    assert again[0].full_valid_loss == pytest.approx(records[-1].full_valid_loss, rel=1e-6)


def test_noise_has_its_size_and_depends_on_the_row_alone() -> None:
    """Values lie evenly within alpha / sqrt(L * H) of zero; neighbours do not change a document's noise."""
    noise = embedding_noise([50, 200], [1, 2], 64, 5.0)
    for part, length in ((noise[:50], 50), (noise[50:], 200)):
        most = 5.0 / math.sqrt(length * 64)
        assert part.abs().max() <= most
        assert float(part.std()) == pytest.approx(most / math.sqrt(3), rel=0.05)
    assert torch.equal(embedding_noise([200], [2], 64, 5.0), noise[50:])


def test_noise_acts_on_training_steps_alone(place: Bench) -> None:
    """Step zero is the base model as ever, training differs with the size, and micro-batches change only rounding."""
    short = place.with_spec(max_steps=3, share_prefixes=False)
    sizes = [short.with_spec(objective=ObjectiveSpec(neftune_alpha=alpha)) for alpha in (0.0, 1.0, 5.0)]
    plain, small, large = (one.train()[0] for one in sizes)
    assert plain[0].full_valid_loss == small[0].full_valid_loss == large[0].full_valid_loss
    assert len({records[1].train_loss for records in (plain, small, large)}) == 3
    pieces = short.with_spec(objective=NOISE, micro_batch_tokens=64).train()[0]
    assert pieces[1].train_loss == pytest.approx(large[1].train_loss, rel=1e-5)


def test_noise_reaches_classifiers_and_foreign_models(place: Bench, tmp_path: Path) -> None:
    """A classifier's training steps see it, and so does a model that transformers computes."""
    place.objects.put("data/labelled", labelled_rows(24))
    classes = place.with_spec(
        data=DataSpec(training_key="data/labelled", validation_fraction=0.25, max_tokens=400),
        objective=ObjectiveSpec(kind="classification"),
        max_steps=2,
    )
    noisy = classes.with_spec(objective=ObjectiveSpec(kind="classification", neftune_alpha=5.0)).train()[0]
    # The head begins at zero, so the first step's loss says nothing.
    assert noisy[2].train_loss != classes.train()[0][2].train_loss
    make_reference("gemma3", tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    tokens, positions = flat(DOCUMENTS)
    noise = torch.ones(sum(LENGTHS), decoder.shape.hidden_size)
    attend = DocumentAttention(LENGTHS, decoder.shape.windows)
    with torch.no_grad():
        noisy = decoder.forward(tokens, positions, attend, noise=noise)
        plain = decoder.forward(tokens, positions, attend)
        assert largest_difference(noisy, plain) > 1e-3
        torch.testing.assert_close(decoder.forward(tokens, positions, attend), plain)
