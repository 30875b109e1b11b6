"""One completion alone by llama.cpp, for benchmarks/serve_cpu.py: runs in an environment that has cyllama.

python benchmarks/serve_cpu_llama.py '{"gguf": FILE, "q8": FILE, "threads": 2, "prompt": [...], "tokens": 128}': makes
the Q8_0 file from an f16 or f32 one, then prints JSON: tokens a second while decoding and of the prompt, and memory.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import cyllama.llama.llama_cpp as llama

Q8_0 = 7


def main() -> None:
    asked = json.loads(sys.argv[1])
    llama.disable_logging()
    llama.llama_backend_init()
    llama.ggml_backend_load_all()
    if not Path(asked["q8"]).exists():
        params = llama.LlamaModelQuantizeParams()
        params.ftype = Q8_0
        llama.model_quantize(asked["gguf"], asked["q8"], params)
    model = llama.LlamaModel(asked["q8"], llama.LlamaModelParams(), verbose=False)
    rounds = [completion(model, asked) for _ in range(asked["rounds"])]
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"rounds": rounds, "memory_mb": int(peak.split()[1]) // 1024}))


def completion(model: Any, asked: dict[str, Any]) -> dict[str, float]:
    """The prompt in one batch, then the likeliest token again and again."""
    params = llama.LlamaContextParams()
    params.n_ctx = params.n_batch = 1024
    params.n_threads = params.n_threads_batch = asked["threads"]
    context = llama.LlamaContext(model, params, verbose=False)
    sampler = llama.LlamaSampler(llama.LlamaSamplerChainParams())
    sampler.add_greedy()
    prompt, tokens = asked["prompt"], []
    began = time.perf_counter()
    context.decode(llama.llama_batch_get_one(prompt, 0))
    tokens.append(sampler.sample(context, -1))
    first = time.perf_counter()
    while len(tokens) < asked["tokens"]:
        context.decode(llama.llama_batch_get_one(tokens[-1:], len(prompt) + len(tokens) - 1))
        tokens.append(sampler.sample(context, -1))
    seconds = time.perf_counter() - first
    return {
        "tokens_per_second": (len(tokens) - 1) / seconds,
        "prompt_tokens_per_second": len(prompt) / (first - began),
        "tokens": tokens[:8],
    }


if __name__ == "__main__":
    main()
