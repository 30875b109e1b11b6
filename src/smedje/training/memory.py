"""Peak memory of a run before it starts, from shapes alone. No torch. Mostly within 25 % of what runs have taken.

Counted: the runtime, base weights, the adapter with gradient and moments, what the backward pass keeps of the largest
flat stream, the logits of its labelled rows. Reading the base model has a peak of its own: the file's pages are
resident beside the weights until they are read. Not counted: shared beginnings, which need less; kernels kept for many
lengths, which weigh on tiny models. `benchmarks/memory_prediction.py` compares with real runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smedje.modeling.config import DecoderConfig
from smedje.training.resolve import resolve_plan
from smedje.training.spec import TrainingSpec

# Python, torch and the tokenizer, before anything is computed; and with the storage library, the optimizer's imports,
# and kernels.
READING_BYTES = 260 * 2**20
RUNTIME_BYTES = 280 * 2**20
# Where streams of several lengths follow each other, the heap has this much more, free between what is in use.
GAPS = 1.3
BYTES = 4  # fp32
# Rows whose logits a stream has in memory at once (training/losses.py).
HEAD_ROWS = 1024
# Tensors of the optimizer beside each trained number.
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1, "adafactor": 0, "lion": 1, "muon": 1}


@dataclass(frozen=True, kw_only=True)
class StreamSizes:
    """The tokens that a run computes at once, how many of them are labelled, and whether a step needs several turns."""

    tokens: int
    labelled: int
    several: bool


def stream_sizes(spec: TrainingSpec, tokens: Sequence[int], labelled: Sequence[int]) -> StreamSizes:
    """The largest stream when training rows have so many tokens and labelled tokens each.

    A step's rows are split into streams of at most `micro_batch_tokens`, together where they run side by side; a row
    that is longer has one of its own. A step with few short rows never fills a stream.
    """
    longest = sorted(tokens, reverse=True)[: resolve_plan(len(tokens), spec).batch_size]
    total, side = sum(longest), _side_by_side(spec)
    turns = max(1, -(-total // spec.micro_batch_tokens))
    # Streams side by side are of about equal length; one after the other, each is as full as it can be.
    usual = -(-total // turns) if side > 1 else min(spec.micro_batch_tokens, total)
    most = max(usual, sum(longest[:side]))
    share = sum(labelled) / max(1, sum(tokens))
    return StreamSizes(tokens=most, labelled=round(most * share), several=total > most)


def adapter_parameters(config: DecoderConfig, rank: int) -> int:
    """Trainable numbers of a LoRA of this rank on every linear."""
    hidden, inner = config.shape.hidden_size, config.intermediate_size
    queries = config.shape.heads * config.shape.head_size
    keys = config.shape.kv_heads * config.shape.head_size
    sides = (hidden + queries) + 2 * (hidden + keys) + (queries + hidden) + 2 * (hidden + inner) + (inner + hidden)
    return rank * sides * config.shape.layers


def weight_parameters(config: DecoderConfig) -> int:
    """Numbers in the base model, embeddings included once when they are tied."""
    hidden, inner = config.shape.hidden_size, config.intermediate_size
    queries = config.shape.heads * config.shape.head_size
    keys = config.shape.kv_heads * config.shape.head_size
    layer = hidden * (queries + 2 * keys) + queries * hidden + 3 * hidden * inner
    embeddings = config.shape.vocab_size * hidden * (1 if config.tie_embeddings else 2)
    return layer * config.shape.layers + embeddings


def held_in_bf16(raw: Mapping[str, Any], config: DecoderConfig, *, memory_bytes: int) -> bool:
    """Whether frozen weights stay as the bf16 of their file, because in fp32 they would take half of the memory."""
    stored = raw.get("dtype", raw.get("torch_dtype"))
    return stored == "bfloat16" and BYTES * weight_parameters(config) > memory_bytes // 2


def predicted_bytes(
    config: DecoderConfig, spec: TrainingSpec, streams: StreamSizes | None = None, *, weight_bytes: int = BYTES
) -> int:
    """Predicted peak resident bytes of a training worker.

    streams: sizes of the run's largest stream; None where its rows are not known, for the largest that it may have.
    weight_bytes: of a frozen weight, 2 for those that stay in bf16.
    """
    if streams is None:
        # A pair is never split, so a stream holds at least one answer with its prompt twice.
        longest = spec.data.max_tokens * (2 if spec.objective.kind == "dpo" else 1)
        most = max(spec.micro_batch_tokens, _side_by_side(spec) * longest)
        streams = StreamSizes(tokens=most, labelled=most // 2, several=True)
    weights = weight_parameters(config)
    trained = weights if spec.lora.full else adapter_parameters(config, spec.lora.rank)
    # What is trained, a step's gradient, a stream's gradient, and what the optimizer remembers.
    trained *= 3 + MOMENTS[spec.optimizer.kind]
    frozen = 0 if spec.lora.full else weight_bytes * weights
    computed = (_kept(config, spec, streams) + _passing(config, spec, streams)) * (GAPS if streams.several else 1.0)
    # While weights are converted the pages of their file are resident too; what stays as it is lies in them alone.
    reading = weights * (2 * BYTES if weight_bytes == BYTES else weight_bytes)
    return max(RUNTIME_BYTES + frozen + BYTES * (trained + round(computed)), READING_BYTES + reading)


def _side_by_side(spec: TrainingSpec) -> int:
    """How many streams may run at once (training/run.py)."""
    return spec.threads if spec.lora.dropout == 0 and not spec.lora.full and spec.device == "cpu" else 1


def _kept(config: DecoderConfig, spec: TrainingSpec, streams: StreamSizes) -> int:
    """Numbers that the forward pass keeps for the backward pass, all layers together."""
    hidden, inner = config.shape.hidden_size, config.intermediate_size
    queries = config.shape.heads * config.shape.head_size
    keys = config.shape.kv_heads * config.shape.head_size
    # A token and layer: two residual streams and what their norms give; q, k, v, attention's result and its
    # log-sum-exp; gate and up side by side and their product; the rank-wide product of each linear.
    layer = 4 * hidden + (queries + 2 * keys) + queries + config.shape.heads + 3 * inner + 7 * spec.lora.rank
    if spec.lora.dropout:
        # Each linear's input once more, with the mask that made it.
        layer += 2 * (2 * hidden + queries + inner)
    if spec.lora.recompute:
        # Each layer's input, and all of the one that is computed again.
        return streams.tokens * (hidden * config.shape.layers + layer + 2 * hidden)
    return streams.tokens * (layer * config.shape.layers + 2 * hidden)


def _passing(config: DecoderConfig, spec: TrainingSpec, streams: StreamSizes) -> int:
    """Numbers that are there only for a moment, between the passes: logits, probabilities and the gradient of them."""
    rows = streams.labelled
    if spec.objective.kind == "supervised" and spec.objective.loss.kind == "cross_entropy":
        rows = min(rows, HEAD_ROWS * _side_by_side(spec))
    return 3 * rows * config.shape.vocab_size
