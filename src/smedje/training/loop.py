"""The one training loop: a generator of step records. Knows nothing of files, clocks on the wall or who is listening.

Everything random is a pure function of (seed, epoch, step): the order of rows, and the dropout masks. So the state
that an exact resume needs is the trained tensors, the optimizer's moments, two counters and the best step so far.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from smedje.data.batches import epoch_order, flat_batch, micro_batches
from smedje.data.classification import LabelledDataset, class_weights, label_rows
from smedje.data.encode import EncodedDataset
from smedje.data.forest import forest, shared_tokens
from smedje.data.preference import PreferenceDataset
from smedje.modeling.lora import TrainableLora
from smedje.modeling.transformer import CausalDecoder
from smedje.training.division import USUAL_STREAM, a_stream_each, even_groups
from smedje.training.figures import Figures, figures_of
from smedje.training.noise import Noisy, embedding_noise
from smedje.training.objectives import Sums, TensorBatch, classification, preference, supervised, to_tensors
from smedje.training.optimizer import rate_at, set_rate
from smedje.training.resolve import Plan
from smedje.training.spec import LossSpec, ObjectiveSpec, WatchSpec
from smedje.training.streams import side_by_side

VALIDATE_EVERY = 10
PLAIN = LossSpec()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a dataset: which part trains, which part is held out. A row is an example, a pair or a text."""

    dataset: EncodedDataset | PreferenceDataset | LabelledDataset
    indices: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What stays fixed while a run trains.

    micro_batch_tokens: most tokens in one flat stream. share_prefixes: what rows of a stream begin with alike is
    computed once. cores: how many streams are computed at the same time, within `micro_batch_tokens` together.
    On a CPU streams stay near the usual length (division.py), above which longer ones gain nothing.
    """

    plan: Plan
    training: Rows
    validation: Rows | None
    objective: ObjectiveSpec
    watch: WatchSpec
    seed: int
    max_grad_norm: float
    micro_batch_tokens: int
    share_prefixes: bool
    device: str
    cores: int = 1


@dataclass(frozen=True, kw_only=True)
class Best:
    """The lowest full validation loss so far, its step, and how many full validations since did not go below it."""

    step: int = 0
    loss: float = float("inf")
    since: int = 0


@dataclass
class State:
    """What changes: the adapter, the optimizer, and how far they have come. trained_tokens: all tokens of rows seen.

    lora: None where the decoder's own weights are trained, which are `weights` by name then.
    head: classes by hidden size, of a classifier. reference: the frozen adapter that preference training starts from.
    """

    decoder: CausalDecoder
    lora: TrainableLora | None
    optimizer: torch.optim.Optimizer
    weights: Mapping[str, torch.nn.Parameter] = field(default_factory=dict)
    head: torch.nn.Parameter | None = None
    reference: TrainableLora | None = None
    step: int = 0
    trained_tokens: int = 0
    best: Best = Best()

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Every trained tensor by a name of its own."""
        named = dict(self.weights if self.lora is None else self.lora.named_parameters())
        return named if self.head is None else {**named, "head": self.head}


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step, or step 0: the model before training on the validation rows.

    Losses are mean nats; accuracies the share of hits; `more` has further means by name. tokens: all tokens in the
    step, labelled: those with a loss, computed: those that went through the network, counted for each pass. seconds:
    the step's own time, validation left out. keep: a checkpoint is due. last: training ends here.
    """

    step: int
    epoch_end: bool = False
    keep: bool = False
    last: bool = False
    train_loss: float | None = None
    train_accuracy: float | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_accuracy: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    labelled: int = 0
    computed: int = 0
    seconds: float = 0.0


def train(job: Job, state: State) -> Iterator[StepRecord]:
    """Train from `state.step` to the plan's end, changing `state`; it is whole and savable at every yield."""
    if state.step == 0 and job.validation is not None:
        yield _with_full(StepRecord(step=0), validate(job, state, job.validation.indices))
    order: list[int] = []
    order_epoch = -1
    last = state.step >= job.plan.total_steps
    while not last:
        epoch, place = divmod(state.step, job.plan.steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(len(job.training.indices), seed=job.seed, epoch=epoch), epoch
        start = place * job.plan.batch_size
        chosen = [job.training.indices[i] for i in order[start : start + job.plan.batch_size]]
        record = _watched(job, state, _with_validation(job, state, _optimizer_step(job, state, chosen)))
        last = record.last
        yield record


def _optimizer_step(job: Job, state: State, chosen: Sequence[int]) -> StepRecord:
    """Forward and backward over the rows in micro-batches, one division by the whole step's weight, one update."""
    began = time.perf_counter()
    rate = rate_at(state.step, job.plan)
    set_rate(state.optimizer, rate)
    if state.lora is not None:
        state.lora.train()
        state.lora.set_rng_state(_dropout_stream(job, state.step))
    state.optimizer.zero_grad(set_to_none=True)
    sums = _gradients(job, state, _parts(job, job.training, chosen))
    weight = sum(s.weight for s in sums)
    parameters = [p for p in state.trained().values() if p.grad is not None]
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.div_(weight)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm, foreach=False))
    state.optimizer.step()
    tokens = sum(job.training.dataset.length(i) for i in chosen)
    state.step += 1
    state.trained_tokens += tokens
    found = figures_of(sums)
    return StepRecord(
        step=state.step,
        epoch_end=state.step % job.plan.steps_per_epoch == 0 or state.step == job.plan.total_steps,
        train_loss=found.loss,
        train_accuracy=found.accuracy,
        more={f"train_{name}": value for name, value in found.more.items()},
        learning_rate=rate,
        grad_norm=norm,
        tokens=tokens,
        labelled=sum(s.labelled for s in sums),
        computed=sum(s.computed for s in sums),
        seconds=time.perf_counter() - began,
    )


def _dropout_stream(job: Job, step: int) -> torch.Tensor:
    """The random state that a step's dropout masks are drawn from: a function of seed and step alone."""
    return torch.Generator(device=job.device).manual_seed(job.seed * 1_000_003 + step).get_state()


def _parts(job: Job, rows: Rows, chosen: Sequence[int]) -> list[list[int]]:
    """The chosen rows in groups that each fit one flat stream; with several cores a like number for each.

    Cores have one stream each where that is quicker and what all rows share leaves room for more in a stream.
    """
    shared = 0
    texts = rows.dataset.texts if isinstance(rows.dataset, LabelledDataset) else rows.dataset
    if job.share_prefixes and isinstance(texts, EncodedDataset):
        shared = shared_tokens(texts, chosen)
    lengths = [rows.dataset.length(i) - shared for i in chosen]
    budget = job.micro_batch_tokens // job.cores
    if shared < budget and a_stream_each(sum(lengths), shared, cores=job.cores):
        groups = even_groups(lengths, token_budget=max(1, budget - shared), multiple=job.cores)
    else:
        room = job.micro_batch_tokens - shared
        if job.device == "cpu":
            room = min(room, job.cores * USUAL_STREAM)
        groups = micro_batches(lengths, token_budget=max(1, room))
    return [[chosen[i] for i in group] for group in groups]


def _gradients(job: Job, state: State, parts: Sequence[list[int]]) -> list[Sums]:
    """The sums of every stream, their gradients added to the trained tensors in the streams' order."""
    trained = list(state.trained().values())

    def one(part: list[int]) -> tuple[Sums, Sequence[torch.Tensor | None]]:
        sums = _sums(job, state, job.training, part, loss=job.objective.loss)
        found = torch.autograd.grad(sums.loss, trained, allow_unused=True)
        return replace(sums, loss=sums.loss.detach()), found

    everything = []
    for sums, gradients in side_by_side(one, parts, cores=job.cores):
        everything.append(sums)
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return everything


def _noisy(job: Job, state: State, indices: Sequence[int], batch: TensorBatch) -> CausalDecoder:
    """The decoder under this step's noise for these rows, which are laid end to end; as it is outside training."""
    if not (job.objective.neftune_alpha and torch.is_grad_enabled()):
        return state.decoder
    # Odd primes keep (seed, step, row) apart; nothing else depends on how they are mixed.
    seeds = [(job.seed * 1_000_003 + state.step) * 1_000_033 + i for i in indices]
    hidden = state.decoder.shape.hidden_size
    return Noisy(state.decoder, embedding_noise(batch.lengths, seeds, hidden, job.objective.neftune_alpha))


def _sums(job: Job, state: State, rows: Rows, indices: Sequence[int], *, loss: LossSpec) -> Sums:
    """The objective on some rows: which one follows from what a row is."""
    match rows.dataset:
        case PreferenceDataset() as pairs:
            both = [2 * i + side for i in indices for side in (0, 1)]
            batch = to_tensors(flat_batch(pairs.answers, both), job.device)
            assert state.lora is not None, "preferences train an adapter"
            return preference(state.decoder, state.lora, state.reference, batch, beta=job.objective.beta)
        case LabelledDataset() as labelled:
            assert state.head is not None
            weights = _class_weights(job, labelled) if rows is job.training else None
            laid, everything = label_rows(labelled, indices, weights), range(len(indices))
            stream = forest(laid, everything) if job.share_prefixes else flat_batch(laid, everything)
            batch = to_tensors(stream, job.device)
            return classification(_noisy(job, state, indices, batch), state.lora, state.head, batch, loss)
        case EncodedDataset() as examples:
            stream = forest(examples, indices) if job.share_prefixes else flat_batch(examples, indices)
            batch = to_tensors(stream, job.device)
            return supervised(_noisy(job, state, indices, batch), state.lora, batch, loss)


def _class_weights(job: Job, labelled: LabelledDataset) -> Sequence[float] | None:
    """How much a training row of each class counts; None when all count the same."""
    if job.objective.balanced:
        return class_weights(labelled, job.training.indices)
    named = job.objective.class_weights
    return [named.get(name, 1.0) for name in labelled.names] if named else None


def _with_validation(job: Job, state: State, record: StepRecord) -> StepRecord:
    """The record with validation figures where they are due: a batch every ten steps, all rows at an epoch's end."""
    if job.validation is None:
        return record
    every = job.watch.evaluate_every
    if record.epoch_end or (every is not None and state.step % every == 0):
        record = _with_full(record, validate(job, state, job.validation.indices))
    if record.epoch_end or state.step % VALIDATE_EVERY == 0:
        rows = job.validation.indices
        size = min(job.plan.batch_size, len(rows))
        first = (state.step // VALIDATE_EVERY * size) % len(rows)
        found = validate(job, state, [rows[(first + i) % len(rows)] for i in range(size)])
        more = {f"valid_{name}": value for name, value in found.more.items()}
        record = replace(record, valid_loss=found.loss, valid_accuracy=found.accuracy, more={**record.more, **more})
    return record


def _with_full(record: StepRecord, found: Figures) -> StepRecord:
    more = {f"full_valid_{name}": value for name, value in found.more.items()}
    return replace(record, full_valid_loss=found.loss, full_valid_accuracy=found.accuracy, more={**record.more, **more})


def _watched(job: Job, state: State, record: StepRecord) -> StepRecord:
    """Note the best step, and say whether a checkpoint is due and whether training ends here."""
    watch, loss, better = job.watch, record.full_valid_loss, False
    if loss is not None:
        # Best is any fall; patience counts falls that are too small to be worth going on.
        better = loss < state.best.loss
        enough = loss < state.best.loss - watch.threshold
        best = Best(step=state.step, loss=loss) if better else state.best
        state.best = replace(best, since=0 if enough else state.best.since + 1)
    stopped = watch.patience is not None and loss is not None and state.best.since >= watch.patience
    last = stopped or state.step >= job.plan.total_steps
    epoch = -(-state.step // job.plan.steps_per_epoch)
    due = record.epoch_end and epoch % watch.checkpoint_epochs == 0
    return replace(record, last=last, keep=last or due or (watch.best and better))


def validate(job: Job, state: State, indices: Sequence[int]) -> Figures:
    """The figures of these validation rows, dropout off, with the plain loss whatever the job trains with."""
    assert job.validation is not None
    if state.lora is not None:
        state.lora.eval()
    rows = job.validation

    def one(part: list[int]) -> Sums:
        with torch.inference_mode():
            return _sums(job, state, rows, part, loss=PLAIN)

    return figures_of(list(side_by_side(one, _parts(job, rows, indices), cores=job.cores)))
