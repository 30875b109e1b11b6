"""The engine process: python -m smedje.serving.worker. Loads one base model and serves it on a unix socket.

The socket's appearance says that it is ready. SIGTERM, or the end of the parent process, lets running completions
finish and ends it. Knows how the parts are put together; knows nothing of deployments.
"""

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from smedje.modeling.load import load_decoder
from smedje.modeling.transformer import CausalDecoder, Decoder
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.grammar import Grammars
from smedje.serving.kv_cache import bytes_per_token
from smedje.serving.server import EngineServer
from smedje.serving.torch_engine import EngineLimits, TorchEngine

PARENT_POLL_SECONDS = 0.5
MAX_SEQUENCES = 32
MAX_ADAPTERS = 32
# Share of the memory that is free after loading that keys and values may take.
CACHE_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The command line. threads: 0 means torch's own choice. parent: process whose end ends this one.

    weights: object-storage prefix of weights in place of the model folder's own.
    """

    model_folder: Path
    socket: Path
    objects: str
    cache: Path
    threads: int
    parent: int
    weights: str | None = None


def parse_options(argv: Sequence[str] | None) -> WorkerOptions:
    """Options from the command line; exits with a usage message when they are wrong."""
    parser = argparse.ArgumentParser(prog="smedje.serving.worker", description="Serve one base model on a socket.")
    parser.add_argument("--model-folder", type=Path, required=True, help="an installed base model")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to create")
    parser.add_argument("--objects", required=True, help="object storage URL that adapter keys refer to")
    parser.add_argument("--cache", type=Path, required=True, help="folder for adapters fetched from a bucket")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0 leaves it to torch")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process whose end ends this one")
    parser.add_argument("--weights", help="object-storage prefix of weights in place of the model's own")
    return WorkerOptions(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to end."""
    options = parse_options(argv)
    os.umask(0o077)
    if options.threads:
        torch.set_num_threads(options.threads)
    objects = open_objects(options.objects)
    weights = None if options.weights is None else objects.local_folder(options.weights, options.cache)
    model = load_decoder(options.model_folder, weights=weights)
    model.pack()
    adapters = AdapterCache(model, objects, folder=options.cache, capacity=MAX_ADAPTERS)
    grammars = Grammars(options.model_folder / "tokenizer.json", vocabulary=model.shape.vocab_size)
    asyncio.run(_serve(TorchEngine(model, adapters, limits_for(model), grammars=grammars), options))
    return 0


def limits_for(model: CausalDecoder) -> EngineLimits:
    """Limits that fit this model and the memory free at this moment."""
    context = model.shape.max_positions
    if isinstance(model, Decoder) and model.config.rope.kind == "longrope" and model.regime == "short":
        context = min(context, model.config.rope.original_positions)
    budget = int(psutil.virtual_memory().available * CACHE_SHARE) // bytes_per_token(model.shape, dtype=torch.float32)
    return EngineLimits(
        context=max(1, min(context, budget)),
        token_capacity=max(1, min(context * MAX_SEQUENCES, budget)),
        max_sequences=MAX_SEQUENCES,
    )


async def _serve(engine: TorchEngine, options: WorkerOptions) -> None:
    drain = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain.set)
    watching = asyncio.create_task(_set_when_gone(options.parent, drain))
    print(f"loaded {options.model_folder}, serving on {options.socket}", flush=True)
    try:
        await EngineServer(engine).run(options.socket, drain=drain)
    finally:
        orphaned = watching.done()
        watching.cancel()
        if orphaned:
            # The folder was the parent's, and nobody else is left to remove it.
            with contextlib.suppress(OSError):
                options.socket.parent.rmdir()


async def _set_when_gone(parent: int, drain: asyncio.Event) -> None:
    """Set the event when the process is gone. Its connections are closed by then, so draining ends at once."""
    try:
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(PARENT_POLL_SECONDS)
    except psutil.NoSuchProcess:
        pass
    drain.set()


if __name__ == "__main__":
    raise SystemExit(main())
