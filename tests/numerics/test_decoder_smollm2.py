"""The embedded real model: our logits against transformers, packed and cached, on real prompts."""

from pathlib import Path

import pytest
import torch
from reference_models import flat, largest_difference, reference_logits

from smedje.modeling.attention import DocumentAttention
from smedje.modeling.load import load_decoder

PROMPTS = (
    "<|im_start|>user\nWhere is my parcel? It was due on 3 May.<|im_end|>\n<|im_start|>assistant\n",
    "The capital of France is Paris, and the capital of Denmark is",
    "def fibonacci(n: int) -> int:\n    return n if n < 2 else",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_real_logits_equal_transformers(model_home: Path) -> None:
    """SmolLM2-135M-Instruct, three packed prompts: as near to double precision as transformers is, same greedy choice.

    The logits reach 40, so that fp32 itself is off by 1e-4: transformers in double precision is the measure.
    """
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    folder = model_home / "models" / "smollm2-135m-instruct"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    documents = [torch.tensor(tokenizer.encode(prompt, add_special_tokens=False).ids) for prompt in PROMPTS]
    lengths = [len(document) for document in documents]
    decoder = load_decoder(folder)
    tokens, positions = flat(documents)
    with torch.inference_mode():
        ours = decoder.head(decoder.forward(tokens, positions, DocumentAttention(lengths, decoder.shape.windows)))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    theirs = reference_logits(reference, documents)
    exact = reference_logits(reference.double(), documents)
    our_error, their_error = largest_difference(ours, exact), largest_difference(theirs, exact)
    print(
        f"SmolLM2-135M-Instruct: ours {our_error:.1e} and transformers {their_error:.1e} from double precision, "
        f"{largest_difference(ours, theirs):.1e} apart; largest logit {float(exact.abs().max()):.1f}"
    )
    assert our_error <= max(1e-4, 1.5 * their_error)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
