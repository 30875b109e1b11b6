"""From a spec to a job and a state that the loop can train.

Knows object storage, the tokenizer and the decoder; refuses to know run folders' timing and process matters.
"""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.classification import LabelledDataset, encode_labelled
from smedje.data.dialogues import hold_out
from smedje.data.encode import EncodedDataset, encode_file
from smedje.data.labels import answer_labels
from smedje.data.preference import encode_pairs
from smedje.data.prepared import Dataset, keep_rows, read_rows, sources_of
from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.adapter import load_adapter
from smedje.modeling.classifier import load_head
from smedje.modeling.config import Slot, targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.products import plain
from smedje.modeling.transformer import CausalDecoder, Decoder
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import Objects
from smedje.training.checkpoint import load_latest_state
from smedje.training.full import full_state, whole_decoder
from smedje.training.loop import Job, Rows, State
from smedje.training.optimizer import make_optimizer
from smedje.training.precision import base_numbers, check_device
from smedje.training.resident import Resident, base_decoder, base_tokenizer
from smedje.training.resolve import resolve_plan
from smedje.training.spec import LoraSpec, TrainingSpec

log = logging.getLogger("smedje.training")


def prepare(
    objects: Objects, spec: TrainingSpec, *, cache: Path, resident: Resident | None = None
) -> tuple[Job, State]:
    """Load data and base model, resolve "auto", and continue the newest saved state of an earlier run, if any.

    resident: what is in memory already; used where it is the very same.
    """
    check_device(spec.device)
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    base = Path(spec.base_folder)
    tokenizer = base_tokenizer(resident, base, today=date.fromisoformat(spec.today))
    training, validation = load_rows(objects, spec, tokenizer, cache=cache)
    _check_weights(spec, _names(training.dataset) or ())
    plan = resolve_plan(len(training.indices), spec)
    _check_watch(spec, validation)
    decoder: CausalDecoder
    if spec.lora.full:
        decoder = whole_decoder(objects, spec, cache=cache)
    else:
        limit = spec.data.max_tokens
        numbers = base_numbers(spec, base)
        if numbers == plain(numbers.rows):
            decoder = base_decoder(resident, base, dtype=numbers.rows, device=spec.device, context_length=limit)
        else:
            decoder = load_decoder(base, device=spec.device, context_length=limit, numbers=numbers)
    if spec.lora.recompute:
        _recompute(decoder)
    state = fresh_state(objects, spec, decoder, cache=cache, names=_names(training.dataset) or ())
    job = Job(
        plan=plan,
        training=training,
        validation=validation,
        objective=spec.objective,
        watch=spec.watch,
        seed=spec.seed,
        max_grad_norm=spec.optimizer.max_grad_norm,
        micro_batch_tokens=spec.micro_batch_tokens,
        share_prefixes=_may_share(spec, state),
        device=spec.device,
        cores=_cores(spec, state),
    )
    for run_id in spec.earlier_runs:
        if load_latest_state(objects, RunFolder(objects, run_id), state, cache=cache):
            break
    return job, state


def _recompute(decoder: CausalDecoder) -> None:
    if not isinstance(decoder, Decoder):
        raise UnsupportedField(
            "This base model's architecture is not one of our own, and its layers cannot be computed again. "
            "Leave smedje.recompute out.",
            param="smedje.recompute",
        )
    decoder.recompute = True


def _may_share(spec: TrainingSpec, state: State) -> bool:
    """Whether shared beginnings can be computed once without changing anything but rounding."""
    whole = all(window is None for window in state.decoder.shape.windows)
    same = spec.lora.dropout == 0 and spec.objective.neftune_alpha == 0
    return spec.share_prefixes and same and whole


def _cores(spec: TrainingSpec, state: State) -> int:
    """How many streams may run side by side: dropout draws from one stream of numbers, and transformers' own models
    hold one pass at a time; gradients of all weights are as large as the model."""
    ours = isinstance(state.decoder, Decoder) and state.lora is not None
    return spec.threads if ours and spec.lora.dropout == 0 and spec.device == "cpu" else 1


def load_rows(
    objects: Objects, spec: TrainingSpec, tokenizer: ChatTokenizer, *, cache: Path
) -> tuple[Rows, Rows | None]:
    """Training rows and held-out rows: a validation file, a seeded share of the training file, or none."""

    path = objects.local_path(spec.data.training_key, cache)
    dataset = _prepared(path, spec, tokenizer, cache=cache)
    everything: Sequence[int] = range(len(dataset))
    if spec.data.validation_key is not None:
        path = objects.local_path(spec.data.validation_key, cache)
        held_out = _prepared(path, spec, tokenizer, cache=cache, names=_names(dataset))
        return Rows(dataset=dataset, indices=everything), Rows(dataset=held_out, indices=range(len(held_out)))
    if spec.data.validation_fraction == 0:
        return Rows(dataset=dataset, indices=everything), None
    chosen, held = hold_out(
        len(dataset),
        seed=spec.seed,
        fraction=spec.data.validation_fraction,
        groups=dataset.groups,
        labels=_labels(path, dataset),
    )
    return Rows(dataset=dataset, indices=chosen), Rows(dataset=dataset, indices=held) if held else None


def _labels(path: Path, dataset: Dataset) -> Sequence[Hashable] | None:
    """What validation has its share of each of: classes, or answers that are labels."""
    if isinstance(dataset, LabelledDataset):
        return dataset.classes
    if not isinstance(dataset, EncodedDataset):
        return None
    by_line = answer_labels(path)
    return None if by_line is None else [by_line[line] for line in dataset.lines]


def _prepared(
    path: Path, spec: TrainingSpec, tokenizer: ChatTokenizer, *, cache: Path, names: Sequence[str] | None = None
) -> Dataset:
    """The rows as an earlier run has left them, or encoded now and left for later ones."""
    options = {"kind": spec.objective.kind, "max_tokens": spec.data.max_tokens, "names": names}
    vocabulary = Path(spec.base_folder) / "tokenizer.json"
    sources = sources_of(path, vocabulary, tokenizer, today=spec.today, options=options)
    kept = read_rows(cache, sources)
    if kept is not None:
        log.info("%d rows were encoded before", len(kept))
        return kept
    dataset = _encoded(path, spec, tokenizer, names=names)
    keep_rows(cache, sources, dataset)
    return dataset


def _encoded(path: Path, spec: TrainingSpec, tokenizer: ChatTokenizer, *, names: Sequence[str] | None) -> Dataset:
    match spec.objective.kind:
        case "dpo":
            return encode_pairs(path, tokenizer, max_tokens=spec.data.max_tokens)
        case "classification":
            return encode_labelled(path, tokenizer, max_tokens=spec.data.max_tokens, names=names)
        case "supervised":
            return encode_file(path, tokenizer, max_tokens=spec.data.max_tokens)


def _names(dataset: Dataset) -> tuple[str, ...] | None:
    return dataset.names if isinstance(dataset, LabelledDataset) else None


def label_names(job: Job) -> tuple[str, ...]:
    """The label names of a classification job, empty for others."""
    return _names(job.training.dataset) or ()


def _check_weights(spec: TrainingSpec, names: Sequence[str]) -> None:
    unknown = sorted(spec.objective.class_weights.keys() - set(names))
    if unknown:
        raise InvalidRequest(
            f"smedje.class_weights names {unknown[0][:60]!r}, and no row has this label. "
            f"Labels: {', '.join(names)[:500]}.",
            code="unknown_label",
            param="smedje.class_weights",
        )


def _check_watch(spec: TrainingSpec, validation: Rows | None) -> None:
    if validation is None and (spec.watch.best or spec.watch.patience is not None):
        raise InvalidRequest(
            "Early stopping and the best checkpoint need validation rows, and this job has none. Give a validation "
            "file or a larger smedje.validation_fraction.",
            code="validation_needed",
            param="smedje.validation_fraction",
        )


def fresh_state(
    objects: Objects, spec: TrainingSpec, decoder: CausalDecoder, *, cache: Path, names: Sequence[str] = ()
) -> State:
    """The base model with a new adapter, or with the adapter that training continues from; nothing trained yet.

    names: a classifier's labels; empty for a chat model.
    """
    if spec.lora.full:
        return full_state(spec, decoder)
    config = adapter_config(spec.lora, decoder.slots)
    weights = None
    if spec.lora.initial is not None:
        weights, given = load_adapter(objects.local_folder(spec.lora.initial, cache))
        _check_same_shape(config, given)
        config = replace(given, dropout=config.dropout)
    draw = torch.Generator().manual_seed(spec.seed)
    lora = TrainableLora(decoder.slots, config, generator=draw, device=spec.device, base=decoder)
    reference = None
    if weights is not None:
        lora.load_weights(weights)
        if spec.objective.kind == "dpo":
            blank = torch.Generator()
            reference = TrainableLora(decoder.slots, config, generator=blank, device=spec.device, base=decoder)
            reference.load_weights(weights)
            reference.eval().requires_grad_(False)
    head = _head(objects, spec, names, decoder.shape.hidden_size, cache=cache)
    trained = [*lora.parameters(), *([] if head is None else [head])]
    optimizer = make_optimizer(trained, spec.optimizer)
    return State(decoder=decoder, lora=lora, optimizer=optimizer, head=head, reference=reference)


def _head(
    objects: Objects, spec: TrainingSpec, names: Sequence[str], hidden: int, *, cache: Path
) -> torch.nn.Parameter | None:
    """A classifier's head: zero, so that no label is likelier at first, but for labels that training goes on with."""
    if not names:
        return None
    rows = torch.zeros(len(names), hidden)
    known = None if spec.lora.initial is None else load_head(objects.local_folder(spec.lora.initial, cache))
    if known is not None:
        for row, name in enumerate(names):
            if name in known[1]:
                rows[row] = known[0][known[1].index(name)]
    return torch.nn.Parameter(rows.to(spec.device))


def adapter_config(spec: LoraSpec, slots: tuple[Slot, ...]) -> AdapterConfig:
    """The adapter's shape on a base model with these linears. Raises InvalidRequest for a layer it does not have."""
    layers = spec.layers
    if spec.last_layers is not None:
        count = 1 + max(slot.site.layer for slot in slots)
        layers = tuple(range(max(0, count - spec.last_layers), count))
    return AdapterConfig(
        rank=spec.rank,
        alpha=spec.alpha,
        dropout=spec.dropout,
        rslora=spec.rslora,
        targets=spec.targets or targets_of(slots),
        layers=layers,
        dora=spec.dora,
    )


def _check_same_shape(config: AdapterConfig, given: AdapterConfig) -> None:
    has, asked = _in_words(given), _in_words(config)
    if has != asked:
        raise InvalidRequest(
            f"The model to continue from has {has}; this job asks for {asked}. Leave these options out to keep them.",
            code="adapter_mismatch",
            param="smedje.lora_rank",
        )
    if set(given.targets) != set(config.targets) or given.layers != config.layers:
        raise InvalidRequest(
            f"The model to continue from adapts {', '.join(given.targets)} in "
            f"{'all layers' if given.layers is None else f'layers {list(given.layers)}'}; leave out lora_targets and "
            "lora_layers to keep them.",
            code="adapter_mismatch",
            param="smedje.lora_targets",
        )


def _in_words(config: AdapterConfig) -> str:
    return f"rank {config.rank}, alpha {config.alpha:g}, rslora {config.rslora}, dora {config.dora}"
