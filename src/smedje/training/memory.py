"""Peak memory of a run before it starts, from shapes alone. No torch. Deliberately a little high, never low.

Counted: base weights, adapter with gradient and two moments, what the backward pass keeps of one flat stream, the
logits of its labelled rows, and the runtime itself. Measured against real runs in benchmarks.
"""

from smedje.modeling.config import DecoderConfig
from smedje.training.spec import TrainingSpec

RUNTIME_BYTES = 450 * 2**20
BYTES = 4  # fp32


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


def predicted_bytes(config: DecoderConfig, spec: TrainingSpec) -> int:
    """Predicted peak resident bytes of a training worker."""
    hidden, inner = config.shape.hidden_size, config.intermediate_size
    queries = config.shape.heads * config.shape.head_size
    keys = config.shape.kv_heads * config.shape.head_size
    # Kept for backward, numbers per token and layer: two norms (input, scaled), q|k|v before and after rotation,
    # attention out and its log-sum-exp, gate, up, their product, and the rank-wide products of each linear.
    kept = 4 * hidden + 2 * (queries + 2 * keys) + queries + config.shape.heads + 4 * inner + 7 * spec.lora.rank
    # A pair is never split, so a stream holds at least one answer with its prompt twice.
    longest = max(spec.micro_batch_tokens, spec.data.max_tokens * (2 if spec.objective.kind == "dpo" else 1))
    activations = longest * (kept * config.shape.layers + 2 * hidden)
    logits = 3 * (longest // 2) * config.shape.vocab_size
    adapter = 4 * adapter_parameters(config, spec.lora.rank)
    return RUNTIME_BYTES + BYTES * (weight_parameters(config) + adapter + activations + logits)
