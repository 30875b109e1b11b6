"""The engine process: python -m smedje.serving.worker. Loads one base model and serves it on a unix socket.

The socket's appearance says that it is ready. SIGTERM, or the end of the parent process, lets running completions
finish and ends it. Knows how the parts are put together; knows nothing of deployments.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from smedje.modeling.transformer import CausalDecoder, Decoder
from smedje.objects.machine import free_memory, usable_memory
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.grammar import Grammars
from smedje.serving.kv_cache import bytes_per_token
from smedje.serving.merged import Merging
from smedje.serving.process import WorkerOptions, option_parser, told_to_end
from smedje.serving.server import EngineServer
from smedje.serving.torch_engine import EngineLimits, TorchEngine
from smedje.serving.weights import load_served

MAX_SEQUENCES = 32
MAX_ADAPTERS = 32
# Share of the memory that is free after loading that keys and values may take.
CACHE_SHARE = 0.5
# Share of the machine's memory that keys and values of ended completions may keep.
RESTING_SHARE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to end."""
    parser = option_parser("smedje.serving.worker")
    parser.add_argument(
        "--numbers",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="what weights are served in, if the model stands it",
    )
    parser.add_argument(
        "--merged",
        choices=("auto", "off"),
        default="auto",
        help="whether an adapter asked alone is put into the weights",
    )
    told = vars(parser.parse_args(argv))
    wanted, may_merge = told.pop("numbers"), told.pop("merged") == "auto"
    options = WorkerOptions(**told)
    os.umask(0o077)
    if options.threads:
        torch.set_num_threads(options.threads)
    objects = open_objects(options.objects)
    weights = None if options.weights is None else objects.local_folder(options.weights, options.cache)
    with compute_threads(torch.get_num_threads()) as pool:
        model, numbers = pool.submit(load_served, options.model_folder, wanted, weights=weights).result()
    adapters = AdapterCache(model, objects, folder=options.cache, capacity=MAX_ADAPTERS)
    grammars = Grammars(options.model_folder / "tokenizer.json", vocabulary=model.shape.vocab_size)
    limits = limits_for(model)
    engine = TorchEngine(model, adapters, limits, grammars=grammars, numbers=numbers)
    if may_merge and numbers == "fp32" and isinstance(model, Decoder):
        engine.merge_with(Merging(model, adapters, folder=options.model_folder, weights=weights))
    asyncio.run(_serve(engine, options))
    return 0


def limits_for(model: CausalDecoder) -> EngineLimits:
    """Limits that fit this model and the memory free at this moment."""
    context = model.shape.max_positions
    if isinstance(model, Decoder) and model.config.rope.kind == "longrope" and model.regime == "short":
        context = min(context, model.config.rope.original_positions)
    budget = int(free_memory() * CACHE_SHARE) // bytes_per_token(model.shape, dtype=torch.float32)
    return EngineLimits(
        context=max(1, min(context, budget)),
        token_capacity=max(1, min(context * MAX_SEQUENCES, budget)),
        resting=int(usable_memory() * RESTING_SHARE) // bytes_per_token(model.shape, dtype=model.rows),
        max_sequences=MAX_SEQUENCES,
    )


def compute_threads(each: int) -> ThreadPoolExecutor:
    """Threads that compute on so many cores each.

    OpenMP keeps a team for every thread that has computed on several cores until that thread ends, and while all teams
    together are more threads than there are cores none of them spins. So the thread that loads ends, and those that
    read adapters have no team: the only one is that of the steps.
    """
    return ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(each,))


async def _serve(engine: TorchEngine, options: WorkerOptions) -> None:
    asyncio.get_running_loop().set_default_executor(compute_threads(1))
    async with told_to_end(options) as drain:
        print(f"loaded {options.model_folder}, serving on {options.socket}", flush=True)
        await EngineServer(engine).run(options.socket, drain=drain)


if __name__ == "__main__":
    raise SystemExit(main())
