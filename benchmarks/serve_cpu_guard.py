"""Whether speed is exact, for benchmarks/serve_cpu.py: our engine against transformers' own loop.

python benchmarks/serve_cpu_guard.py '{"base": FOLDER, "adapters": FOLDER, "prompts": 64, "tokens": 16}' prints JSON:
for the base model and two adapters how many of the prompts have equal greedy tokens, and the largest difference of the
chosen tokens' log probabilities. The reference applies adapters by peft.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from serve_cpu_inside import engine
from transformers import AutoModelForCausalLM

from smedje.domain.conversations import Sampling
from smedje.modeling.load import load_decoder
from smedje.serving.engine import GenerationRequest
from smedje.serving.torch_engine import TorchEngine

Answers = list[tuple[list[int], list[float]]]
REFERENCE_BATCH = 16


def main() -> None:
    asked = json.loads(sys.argv[1])
    draw = random.Random(7)
    # One length a batch, so that the reference needs no padding.
    prompts = [draw.choices(range(100, 40_000), k=24 + 8 * (n // REFERENCE_BATCH)) for n in range(asked["prompts"])]
    model = load_decoder(Path(asked["base"]))
    model.pack()
    subject = engine(model, asked)
    keys = [None, "adapter-0", "adapter-1"]
    ours = {key: answers(subject, prompts, key, asked["tokens"]) for key in keys}
    del model, subject
    print(json.dumps({key or "base": compared(ours[key], reference(prompts, key, asked)) for key in keys}))


def answers(subject: TorchEngine, prompts: Sequence[list[int]], adapter: str | None, tokens: int) -> Answers:
    """Greedy tokens and their log probabilities, all prompts at once."""
    sampling = Sampling(temperature=0.0, top_logprobs=0)
    for number, prompt in enumerate(prompts):
        asked = GenerationRequest(tokens=tuple(prompt), sampling=sampling, max_tokens=tokens, adapter=adapter)
        subject.add(number, asked)
    found: Answers = [([], []) for _ in prompts]
    ended = 0
    while ended < len(prompts):
        for delivery in subject.step():
            found[delivery.request_id][0].extend(delivery.chunk.tokens)
            found[delivery.request_id][1].extend(one.logprob for one in delivery.chunk.logprobs or ())
            ended += delivery.chunk.finish is not None
    return found


@torch.inference_mode()
def reference(prompts: Sequence[list[int]], adapter: str | None, asked: dict[str, Any]) -> Answers:
    """The same from transformers' generate, the adapter applied by peft."""
    model: Any = AutoModelForCausalLM.from_pretrained(asked["base"], dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(Path(asked["adapters"]) / adapter)).eval()
    model.generation_config.eos_token_id = None  # nothing ends early, as with ours
    settings = {"do_sample": False, "max_new_tokens": asked["tokens"], "pad_token_id": 0}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    found: Answers = []
    for start in range(0, len(prompts), REFERENCE_BATCH):
        tokens = torch.tensor(prompts[start : start + REFERENCE_BATCH])
        out = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **settings)
        chosen = out.sequences[:, tokens.shape[1] :]
        known = torch.stack(out.logits, dim=1).log_softmax(-1).gather(2, chosen[..., None])[..., 0]
        found += list(zip(chosen.tolist(), known.tolist(), strict=True))
    return found


def compared(ours: Answers, theirs: Answers) -> dict[str, float]:
    """How many prompts have the same tokens, and how far log probabilities are apart up to the first other token."""
    equal = sum(a[0] == b[0] for a, b in zip(ours, theirs, strict=True))
    apart = 0.0
    for (tokens, known), (others, expected) in zip(ours, theirs, strict=True):
        for token, other, value, wanted in zip(tokens, others, known, expected, strict=True):
            if token != other:
                break
            apart = max(apart, abs(value - wanted))
    return {"prompts": len(ours), "equal": equal, "largest_logprob_difference": apart}


if __name__ == "__main__":
    main()
