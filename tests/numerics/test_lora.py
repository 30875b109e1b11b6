"""Adapters: where they start, what training touches, dropout that resumes, serving several at once, merging."""

from pathlib import Path

import pytest
import torch
from reference_models import flat, largest_difference, make_reference, random_documents
from torch import Tensor

from smedje.errors import InvalidRequest
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora, adapted_slots, merge_into, merged_state
from smedje.modeling.served_adapters import SegmentedLora, ServedAdapter
from smedje.modeling.transformer import CausalDecoder, LowRank

LENGTHS = (13, 4, 21)
DOCUMENTS = random_documents(LENGTHS)
TOKENS, POSITIONS = flat(DOCUMENTS)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["llama", "phi3", "gemma3"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> CausalDecoder:
    """A family with separate linears, one with fused ones, and one computed by transformers."""
    make_reference(request.param, tmp_path)
    return load_decoder(tmp_path)


@pytest.fixture
def llama(tmp_path: Path) -> CausalDecoder:
    """The plain case alone."""
    make_reference("llama", tmp_path)
    return load_decoder(tmp_path)


def hidden(decoder: CausalDecoder, lora: LowRank | None = None) -> Tensor:
    """Hidden states of the three documents in one stream."""
    return decoder.forward(TOKENS, POSITIONS, DocumentAttention(LENGTHS, decoder.shape.windows), lora)


def config_for(decoder: CausalDecoder, *, rank: int = 4, dropout: float = 0.0) -> AdapterConfig:
    """An adapter on every linear of the decoder."""
    return AdapterConfig(rank, 2.0 * rank, targets_of(decoder.slots), dropout)


def fresh(decoder: CausalDecoder, config: AdapterConfig, *, seed: int = 0) -> TrainableLora:
    """An untrained adapter."""
    return TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(seed))


def trained(decoder: CausalDecoder, config: AdapterConfig, *, seed: int = 0) -> TrainableLora:
    """An adapter whose B is no longer zero, as after some training."""
    lora = fresh(decoder, config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora


def step(decoder: CausalDecoder, lora: TrainableLora) -> float:
    """One plain gradient step on a toy loss; returns the loss."""
    loss = hidden(decoder, lora).square().mean()
    grads = torch.autograd.grad(loss, list(lora.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(lora.parameters(), grads, strict=True):
            parameter.sub_(0.5 * grad)
    return float(loss)


def test_a_fresh_adapter_changes_nothing(decoder: CausalDecoder) -> None:
    """Before its first step an adapter leaves every bit of the output alone."""
    with torch.no_grad():
        assert torch.equal(hidden(decoder, fresh(decoder, config_for(decoder))), hidden(decoder))


def test_the_seed_fixes_the_initial_adapter(llama: CausalDecoder) -> None:
    """The same generator state gives the same bits, another seed others; A stays within PEFT's uniform bound."""
    config = config_for(llama)
    one, same, other = (fresh(llama, config, seed=seed).weights() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)
    for name, tensor in one.items():
        bound = tensor.shape[1] ** -0.5
        assert bool((tensor == 0).all()) if "lora_B" in name else 0.8 * bound < float(tensor.abs().max()) <= bound
        assert tensor.dtype == torch.float32


def test_gradients_equal_plain_autograd(decoder: CausalDecoder) -> None:
    """Our backward pass gives the adapter the gradients that autograd derives from y + scale * (x A') B'."""
    config = config_for(decoder)
    lora = trained(decoder, config)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in lora.weights().items()}

    def plain(site: object, x: Tensor, y: Tensor) -> Tensor:
        for slot in decoder.slots:
            if slot.site == site:
                a, b = (weights[f"base_model.model.{slot.name}.lora_{factor}.weight"] for factor in "AB")
                added = torch.nn.functional.pad(x @ a.T @ b.T, (slot.start, y.shape[1] - slot.stop))
                y = y + config.scale * added
        return y

    weighting = torch.randn(sum(LENGTHS), decoder.shape.hidden_size, generator=torch.Generator().manual_seed(5))
    (hidden(decoder, lora) * weighting).sum().backward()
    (hidden(decoder, plain) * weighting).sum().backward()
    ours = dict(zip(lora.weights(), (parameter.grad for parameter in lora.parameters()), strict=True))
    for name, leaf in weights.items():
        mine = ours[name]
        assert mine is not None
        assert leaf.grad is not None
        assert float((mine - leaf.grad).norm() / leaf.grad.norm()) <= 1e-5, name


def test_training_touches_the_adapter_alone(llama: CausalDecoder) -> None:
    """A step moves one adapter; the base model and another adapter keep every bit."""
    config = config_for(llama)
    moved, kept = trained(llama, config, seed=1), trained(llama, config, seed=2)
    before = {name: tensor.clone() for name, tensor in kept.weights().items()}
    base = {name: tensor.clone() for name, tensor in llama.export_state().items()}
    start = {name: tensor.clone() for name, tensor in moved.weights().items()}
    losses = [step(llama, moved) for _ in range(3)]
    assert losses[2] < losses[0]
    assert not any(torch.equal(start[name], tensor) for name, tensor in moved.weights().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in kept.weights().items())
    assert all(torch.equal(base[name], tensor) for name, tensor in llama.export_state().items())


def test_dropout_resumes_exactly_and_sleeps_outside_training(llama: CausalDecoder) -> None:
    """With the random state put back the same masks come again; in eval mode there are none."""
    config = config_for(llama, dropout=0.3)
    lora = trained(llama, config)
    with torch.no_grad():
        state = lora.rng_state()
        first, second = hidden(llama, lora), hidden(llama, lora)
        lora.set_rng_state(state)
        again = hidden(llama, lora)
        calm = hidden(llama, lora.eval())
        without = hidden(llama, trained(llama, config_for(llama)))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(calm, without)


def test_dropout_gradients_follow_the_masks(llama: CausalDecoder) -> None:
    """With the same masks, a small step along the gradient changes the loss by the predicted amount."""
    lora = trained(llama, config_for(llama, dropout=0.3))
    state = lora.rng_state()
    loss = hidden(llama, lora).double().square().mean()
    loss.backward()
    grads = [parameter.grad for parameter in lora.parameters()]
    length = sum(float(grad.square().sum()) for grad in grads if grad is not None)
    size = 1e-3 / length**0.5
    with torch.no_grad():
        for parameter, grad in zip(lora.parameters(), grads, strict=True):
            assert grad is not None
            parameter.sub_(size * grad)
        lora.set_rng_state(state)
        after = hidden(llama, lora).double().square().mean()
    assert float(loss - after) == pytest.approx(size * length, rel=0.02)


def test_merged_equals_unmerged(decoder: CausalDecoder) -> None:
    """W + scale * B A gives the outputs of the adapter beside W, and the merged export is those same weights."""
    config = config_for(decoder)
    lora = trained(decoder, config)
    with torch.no_grad():
        beside = hidden(decoder, lora)
        state = {name: tensor.clone() for name, tensor in merged_state(decoder, lora.weights(), config).items()}
        merge_into(decoder, lora.weights(), config)
        difference = largest_difference(hidden(decoder), beside)
    print(f"largest difference {difference:.1e}")
    assert difference <= 2e-5
    assert all(torch.equal(state[name], tensor) for name, tensor in decoder.export_state().items())


def test_mixed_rows_equal_separate_runs(decoder: CausalDecoder) -> None:
    """Rows of two adapters and of the base model in one batch come out as in three batches of their own."""
    config = config_for(decoder)
    loras = [trained(decoder, config, seed=seed) for seed in (1, 2)]
    served = [ServedAdapter(decoder, lora.weights(), config) for lora in loras]
    with torch.inference_mode():
        segments = [(served[0], torch.arange(0, 13)), (served[1], torch.arange(17, 38))]
        mixed = hidden(decoder, SegmentedLora(segments))
        alone = [hidden(decoder, loras[0])[:13], hidden(decoder)[13:17], hidden(decoder, loras[1])[17:]]
    difference = largest_difference(mixed, torch.cat(alone))
    print(f"largest difference {difference:.1e}")
    assert difference <= 2e-5


def test_scattered_rows_and_empty_segments(llama: CausalDecoder) -> None:
    """An adapter's rows need not be neighbours, and an adapter without rows in this batch is no error."""
    config = config_for(llama)
    lora = trained(llama, config)
    served = ServedAdapter(llama, lora.weights(), config)
    outer = torch.cat([torch.arange(0, 13), torch.arange(17, 38)])
    with torch.inference_mode():
        mixed = hidden(llama, SegmentedLora([(served, outer), (served, torch.arange(0))]))
        assert largest_difference(mixed[outer], hidden(llama, lora)[outer]) <= 2e-5
        assert largest_difference(mixed[13:17], hidden(llama)[13:17]) <= 2e-5


def test_chosen_layers_and_targets_only(llama: CausalDecoder) -> None:
    """An adapter on some layers and linears has tensors there and nowhere else."""
    config = AdapterConfig(2, 4.0, ("q_proj", "down_proj"), layers=(0, 2))
    names = [slot.name for slot in adapted_slots(llama.slots, config)]
    assert names == [
        f"model.layers.{layer}.{name}" for layer in (0, 2) for name in ("self_attn.q_proj", "mlp.down_proj")
    ]
    lora = trained(llama, config)
    assert len(lora.weights()) == 8
    with torch.no_grad():
        beside = hidden(llama, lora)
        merge_into(llama, lora.weights(), config)
        assert largest_difference(hidden(llama), beside) <= 2e-5


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (AdapterConfig(2, 4.0, ("qkv_proj",)), "no linear named 'qkv_proj'.*q_proj"),
        (AdapterConfig(2, 4.0, ("q_proj",), layers=(3,)), "layers 0 to 2; there is no layer 3"),
    ],
)
def test_unknown_targets_and_layers_are_named(config: AdapterConfig, says: str, llama: CausalDecoder) -> None:
    """The message names the wrong target or layer and the right ones."""
    with pytest.raises(InvalidRequest, match=says):
        fresh(llama, config)


def test_weights_of_another_shape_are_refused(llama: CausalDecoder) -> None:
    """Weights go in only where names and sizes fit; otherwise nothing is changed silently."""
    config = config_for(llama)
    lora, donor = fresh(llama, config), trained(llama, config)
    lora.load_weights(donor.weights())
    assert all(torch.equal(lora.weights()[name], tensor) for name, tensor in donor.weights().items())
    with pytest.raises(InvalidRequest, match="this adapter needs"):
        lora.load_weights(fresh(llama, config_for(llama, rank=2)).weights())
    some = AdapterConfig(4, 8.0, ("q_proj",))
    with pytest.raises(InvalidRequest, match="36 missing"):
        lora.load_weights(fresh(llama, some).weights())
    with pytest.raises(InvalidRequest, match="unexpected"):
        ServedAdapter(llama, donor.weights(), some)


def test_scale_of_rank_stabilised_adapters() -> None:
    """alpha / rank by default, alpha / sqrt(rank) where asked for."""
    assert AdapterConfig(16, 32.0, ("q_proj",)).scale == 2.0
    assert AdapterConfig(16, 32.0, ("q_proj",), rslora=True).scale == 8.0
