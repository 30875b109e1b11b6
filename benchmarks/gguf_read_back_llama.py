"""Greedy answers by llama.cpp, for benchmarks/gguf_read_back.py: runs in an environment that has cyllama.

python benchmarks/gguf_read_back_llama.py '{"gguf": FILE, "threads": 2, "prompts": [TEXT, ...], "tokens": 32}': prints
JSON: for each prompt its ids and the tokens said, the end of the answer not among them; and the file's chat template.
Keys and values are kept in f32, so that what differs is the file.
"""

import json
import sys
from typing import Any

import cyllama.llama.llama_cpp as llama

F32 = 0
NO_FLASH_ATTENTION = 0


def main() -> None:
    asked = json.loads(sys.argv[1])
    llama.disable_logging()
    llama.llama_backend_init()
    llama.ggml_backend_load_all()
    model = llama.LlamaModel(asked["gguf"], llama.LlamaModelParams(), verbose=False)
    vocabulary = model.get_vocab()
    answers = []
    for text in asked["prompts"]:
        prompt = list(vocabulary.tokenize(text, False, True))
        answers.append({"prompt": prompt, "tokens": completion(model, vocabulary, prompt, asked)})
    print(json.dumps({"template": model.get_default_chat_template(), "answers": answers}))


def completion(model: Any, vocabulary: Any, prompt: list[int], asked: dict[str, Any]) -> list[int]:
    """The likeliest token again and again, until the file says that the answer has ended."""
    params = llama.LlamaContextParams()
    params.n_ctx = params.n_batch = 512
    params.n_threads = params.n_threads_batch = asked["threads"]
    params.type_k = params.type_v = F32
    params.flash_attn_type = NO_FLASH_ATTENTION
    context = llama.LlamaContext(model, params, verbose=False)
    sampler = llama.LlamaSampler(llama.LlamaSamplerChainParams())
    sampler.add_greedy()
    said: list[int] = []
    context.decode(llama.llama_batch_get_one(prompt, 0))
    while len(said) < asked["tokens"]:
        token = sampler.sample(context, -1)
        if vocabulary.is_eog(token):
            break
        said.append(token)
        context.decode(llama.llama_batch_get_one([token], len(prompt) + len(said) - 1))
    return said


if __name__ == "__main__":
    main()
