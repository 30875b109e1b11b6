"""Peak memory of a run before it starts, from shapes alone. No torch. Within 15 % of what ten kinds of runs have taken.

Counted: the runtime, base weights, what is trained with gradient and moments, what the backward pass keeps of the
streams that are computed at once (a beginning that all rows share once for each of them), the head's logits, kernels,
and holes that streams of different lengths leave in the heap. Reading the base model has a peak of its own: the file's
pages are resident beside the weights until they are read. Not counted: beginnings that only some rows share, which need
less. `benchmarks/memory_prediction.py` compares with real runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smedje.modeling.config import DecoderConfig
from smedje.training.division import USUAL_STREAM, a_stream_each, turns
from smedje.training.resolve import resolve_plan
from smedje.training.spec import TrainingSpec

# Python, torch and the tokenizer, before anything is computed; and with the storage library, the optimizer's imports
# and the rows.
READING_BYTES = 260 * 2**20
RUNTIME_BYTES = 320 * 2**20
# oneDNN's kernels: as many as a worker keeps (training/worker.py), 0.6 MB each; four or five lengths need as many.
KERNEL_BYTES = 75 * 2**20
# Every stream of another length leaves holes in the heap that the next does not fill: a share of what is computed, that
# grows with the streams of a run and then no more (12 steps: 15 %).
HOLES, MOST_HOLES = 0.01, 0.2
BYTES = 4  # fp32
# Rows whose logits a stream has in memory at once (training/losses.py).
HEAD_ROWS = 256
# How many sizes of steps are looked at, from the usual to the largest.
SIZES = 1000
# Tensors of the optimizer beside each trained number.
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1, "adafactor": 0, "lion": 1, "muon": 1}


@dataclass(frozen=True, kw_only=True)
class StreamSizes:
    """What a run computes at once: tokens, how many of them are labelled, in how many streams side by side.

    turns: how often a step does that. computed: streams of the whole run.
    """

    tokens: int
    labelled: int
    streams: int
    turns: int
    computed: int


def stream_sizes(spec: TrainingSpec, tokens: Sequence[int], labelled: Sequence[int], *, shared: int = 0) -> StreamSizes:
    """The largest streams when training rows have so many tokens and labelled tokens each. As training/loop.py has it.

    shared: tokens that all rows begin with, which each stream computes once. A step's rows are split into streams of at
    most `micro_batch_tokens`, together where they run side by side; a row that is longer has one of its own. A step
    with few short rows never fills a stream.
    """
    shared = shared if shares_beginnings(spec) else 0
    # A row's last token is only ever a target; and the head sees none of a beginning that no row has a label in.
    plan = resolve_plan(len(tokens), spec)
    longest = sorted(tokens, reverse=True)[: plan.batch_size]
    own = [max(0, count - 1 - shared) for count in longest]
    side = _side_by_side(spec)
    budget, cores = spec.micro_batch_tokens // side, side
    if shared >= budget or not a_stream_each(sum(own), shared, cores=side):
        side, budget = 1, spec.micro_batch_tokens
        if spec.device == "cpu":
            budget = min(budget, shared + cores * USUAL_STREAM)
    apart, side, room = side > 1, min(side, len(own)), max(1, budget - shared)

    def a_turn(size: int) -> int:
        count = turns(size, token_budget=room, cores=side) if apart else max(1, -(-size // room))
        return -(-size // count)

    # Streams of a step are of about equal length, and fullest where its rows just fill them; steps differ in size.
    largest = sum(own)
    usual = min(largest, len(own) * sum(tokens) // len(tokens))
    sizes = range(usual, largest, max(1, (largest - usual) // SIZES))
    most = max(sum(own[:side]), a_turn(largest), *(a_turn(size) for size in sizes))
    count = -(-largest // most)
    share = sum(labelled) / max(1, sum(max(1, count - 1 - shared) for count in tokens))
    return StreamSizes(
        tokens=side * shared + most,
        labelled=round(most * min(1.0, share)),
        streams=side,
        turns=count,
        computed=plan.total_steps * count * side,
    )


def shares_beginnings(spec: TrainingSpec) -> bool:
    """Whether rows that begin alike are computed together (training/run.py), windows of attention aside."""
    chats = spec.objective.kind != "dpo"
    return spec.share_prefixes and chats and spec.lora.dropout == 0 and spec.objective.neftune_alpha == 0


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
        side = _side_by_side(spec)
        # A pair is never split, so a stream holds at least one answer with its prompt twice.
        longest = spec.data.max_tokens * (2 if spec.objective.kind == "dpo" else 1)
        most = max(spec.micro_batch_tokens, side * longest)
        streams = StreamSizes(tokens=most, labelled=most // 2, streams=side, turns=2, computed=100)
    weights = weight_parameters(config)
    trained = weights if spec.lora.full else adapter_parameters(config, spec.lora.rank)
    frozen = 0 if spec.lora.full else weight_bytes * weights
    held = RUNTIME_BYTES + KERNEL_BYTES + frozen + BYTES * trained * (1 + MOMENTS[spec.optimizer.kind])
    # The most is there when the last streams' backward pass begins, with the gradient of those before; or at its end,
    # when all is given back but each stream's gradient.
    several = streams.turns > 1
    holes = min(MOST_HOLES, HOLES * (streams.computed - streams.streams))
    computed = (_kept(config, spec, streams) + BYTES * _passing(config, spec, streams)) * (1 + holes)
    begins = round(computed) + (BYTES * trained if several else 0)
    ends = BYTES * trained * (streams.streams + several)
    if spec.lora.full:
        # The embedding's gradient comes from both its uses, and the optimizer's step computes with one more.
        ends += 3 * BYTES * config.shape.vocab_size * config.shape.hidden_size
    # While weights are converted the pages of their file are resident too; what stays as it is lies in them alone.
    reading = weights * (2 * BYTES if weight_bytes == BYTES else weight_bytes)
    return max(held + max(begins, ends), READING_BYTES + reading)


def multiplied_in_bf16(spec: TrainingSpec) -> bool:
    """Whether frozen weights and rows are surely bf16 (training/precision.py); on a CPU "auto" asks the processor."""
    return not spec.lora.full and spec.lora.precision in (("bf16",) if spec.device == "cpu" else ("bf16", "auto"))


def _side_by_side(spec: TrainingSpec) -> int:
    """How many streams may run at once (training/run.py)."""
    return spec.threads if spec.lora.dropout == 0 and not spec.lora.full and spec.device == "cpu" else 1


def _kept(config: DecoderConfig, spec: TrainingSpec, streams: StreamSizes) -> int:
    """Bytes that the forward pass keeps for the backward pass, all layers together."""
    hidden, inner = config.shape.hidden_size, config.intermediate_size
    queries = config.shape.heads * config.shape.head_size
    keys = config.shape.kv_heads * config.shape.head_size
    # A token and layer: what enters the two norms; q, k, v and attention's result; gate and up side by side; the
    # rank-wide product of each linear. In bf16 runs these are halves (modeling/adapted.py).
    rows = 2 * hidden + (queries + 2 * keys) + queries + 2 * inner + 7 * spec.lora.rank
    half = multiplied_in_bf16(spec)
    apart = spec.lora.full or spec.lora.dora or spec.lora.dropout > 0
    if apart:
        # What norms and the gated activation give; and with dropout each linear's input once more, with its mask.
        rows += 2 * hidden + inner
        rows += 2 * (2 * hidden + queries + inner) if spec.lora.dropout else 0
    # Always in fp32: attention's log-sum-exp, the norms' scales.
    number = 2 if half and not apart else BYTES
    layer = rows * number + BYTES * (config.shape.heads + 2)
    # What enters and leaves the last norm; and the layer in work has about as much again that is not kept, with what
    # its gated activation gives, computed again, and the gradient of that.
    around = 2 * hidden * BYTES + layer + 2 * inner * number
    if spec.lora.recompute:
        # Each layer's input, and all of the one that is computed again.
        return streams.tokens * (BYTES * hidden * config.shape.layers + layer + around)
    return streams.tokens * (layer * config.shape.layers + around)


def _passing(config: DecoderConfig, spec: TrainingSpec, streams: StreamSizes) -> int:
    """Numbers that are there only for a moment, between the passes: logits, which become the gradient of them."""
    vocabulary = config.shape.vocab_size
    if spec.objective.kind == "supervised" and spec.objective.loss.kind == "cross_entropy" and not spec.lora.full:
        return min(streams.labelled, HEAD_ROWS * streams.streams) * vocabulary
    if spec.objective.kind == "classification":
        return 0
    return 3 * streams.labelled * vocabulary
