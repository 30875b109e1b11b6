"""The engine process whose engine is vLLM: python -m smedje.serving.vllm_worker, with the worker's own command line.

Starts a vLLM server from an environment of its own as a child, waits for it, and serves it on our socket by our
protocol: whoever asks sees no difference. Ends when vLLM does. No torch here.
"""

import asyncio
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from smedje.errors import SmedjeError, Unavailable
from smedje.modeling.config import read_decoder_config, read_raw_config, why_not_owned
from smedje.objects.local_files import lent_folder
from smedje.objects.machine import gpu
from smedje.objects.store import Objects, open_objects
from smedje.serving.process import WorkerOptions, option_parser, told_to_end
from smedje.serving.server import EngineServer
from smedje.serving.vllm_adapters import write_neutral
from smedje.serving.vllm_engine import VllmEngine, VllmServer
from smedje.serving.vllm_process import VllmOptions, new_key, running, until_ready
from smedje.serving.vllm_wire import ENGINE_GONE

MAX_ADAPTERS = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to end, or until vLLM ends."""
    parser = option_parser("smedje.serving.vllm_worker")
    parser.add_argument("--vllm", type=Path, required=True, help="vLLM's program")
    parser.add_argument("--vllm-options", default="", help="more options of `vllm serve`, as in a shell")
    found = vars(parser.parse_args(argv))
    program, extra = found.pop("vllm"), tuple(shlex.split(found.pop("vllm_options")))
    os.umask(0o077)
    try:
        _run(WorkerOptions(**found), program, extra)
    except SmedjeError as error:
        print(error.message, file=sys.stderr, flush=True)
        return 1
    return 0


def _run(options: WorkerOptions, program: Path, extra: tuple[str, ...]) -> None:
    objects, exact = open_objects(options.objects), gpu() is None
    with model_folder(options, objects) as folder:
        server = VllmServer(
            socket=options.socket.with_suffix(".vllm"),
            key=new_key(),
            vocabulary=int(read_raw_config(folder)["vocab_size"]),
            adapters=MAX_ADAPTERS,
            cache=options.cache,
            neutral=neutral_adapter(folder, options.cache) if exact else None,
        )
        started = VllmOptions(
            program=program,
            model=folder,
            context=context_length(folder),
            extra=extra,
            exact=exact,
            threads=options.threads,
        )
        asyncio.run(_serve(options, started, server, objects))


def neutral_adapter(folder: Path, cache: Path) -> Path:
    """The adapter of requests without one, in the cache. Raises UnsupportedField for models that we do not know."""
    config = read_decoder_config(folder)
    inputs, outputs = config.shape.heads * config.shape.head_size, config.shape.hidden_size
    return write_neutral(cache / f"neutral-{inputs}-{outputs}", inputs=inputs, outputs=outputs)


def context_length(folder: Path) -> int | None:
    """The longest sequence that our own engine would admit, in tokens; None for models that it does not know.

    A model with two sets of rotary factors gets those of its original context, as it was trained here.
    """
    if why_not_owned(read_raw_config(folder)) is not None:
        return None
    config = read_decoder_config(folder)
    context = config.shape.max_positions
    return min(context, config.rope.original_positions) if config.rope.kind == "longrope" else context


@contextmanager
def model_folder(options: WorkerOptions, objects: Objects) -> Iterator[Path]:
    """The model's folder; with other weights a temporary one of links, to those weights and to the model's rest."""
    if options.weights is None:
        yield options.model_folder
        return
    weights = objects.local_folder(options.weights, options.cache)
    with lent_folder(options.cache, prefix="vllm-model-") as folder:
        rest = (path for path in options.model_folder.iterdir() if ".safetensors" not in path.name)
        for path in (*rest, *weights.glob("*.safetensors*")):
            (folder / path.name).symlink_to(path.resolve())
        yield folder


async def _serve(options: WorkerOptions, started: VllmOptions, server: VllmServer, objects: Objects) -> None:
    async with told_to_end(options) as drain, running(started, server, environ=os.environ) as process:
        ready = asyncio.create_task(until_ready(server, process))
        told = asyncio.create_task(drain.wait())
        await asyncio.wait({ready, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not ready.done():
            ready.cancel()
            return
        await ready
        engine = await asyncio.to_thread(VllmEngine, server, objects)
        watching = asyncio.create_task(_fail_at_end(process, engine))
        print(f"vLLM serves {started.model}, serving on {options.socket}", flush=True)
        try:
            await EngineServer(engine).run(options.socket, drain=drain)
        finally:
            watching.cancel()


async def _fail_at_end(process: asyncio.subprocess.Process, engine: VllmEngine) -> None:
    status = await process.wait()
    engine.fail(Unavailable(f"vLLM ended with status {status}.", code=ENGINE_GONE))


if __name__ == "__main__":
    raise SystemExit(main())
