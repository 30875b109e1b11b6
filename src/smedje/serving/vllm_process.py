"""A vLLM server as a child process: its command line, its environment, its start and its end.

It listens on a unix socket in a folder of this user's own and asks for a random key; it logs no prompts, reports no use
and fetches nothing. Knows processes and options of `vllm serve`; knows nothing of requests.
"""

import asyncio
import ctypes
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from smedje.errors import Unavailable
from smedje.serving.vllm_engine import VllmServer
from smedje.serving.vllm_wire import BASE

POLL_SECONDS = 0.25
# How long vLLM may take to end by itself.
STOP_SECONDS = 8.0
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
# Found in the environment of this process, and not meant for programs of another environment.
NOT_THEIRS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """What is started. program: vLLM's. model: a folder. context: longest sequence in tokens, None: what vLLM finds.

    extra: more options of `vllm serve`. exact: whether to compute in fp32. threads: 0 leaves it to vLLM.
    """

    program: Path
    model: Path
    context: int | None
    extra: tuple[str, ...] = ()
    exact: bool = True
    threads: int = 0


def command_line(options: VllmOptions, server: VllmServer) -> list[str]:
    """The command. What `extra` says wins over the first lines, and what must be so stands behind it."""
    usual = ["--max-lora-rank", "64", "--max-loras", "8", "--max-cpu-loras", str(server.adapters)]
    if options.exact:
        usual += ["--dtype", "float32"]
    if options.context is not None:
        usual += ["--max-model-len", str(options.context)]
    needed = ["--uds", str(server.socket), "--served-model-name", BASE, "--enable-lora", "--generation-config", "vllm"]
    needed += ["--enable-prompt-tokens-details", "--structured-outputs-config.backend", "guidance"]
    needed += ["--no-enable-log-requests", "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
    return [str(options.program), "serve", str(options.model), *usual, *options.extra, *needed]


def environment(options: VllmOptions, server: VllmServer, *, environ: Mapping[str, str]) -> dict[str, str]:
    """The whole environment: what was inherited, without our interpreter's paths, and what must be so."""
    kept = {name: value for name, value in environ.items() if name not in NOT_THEIRS}
    if options.threads:
        kept |= {"OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return kept | {
        "PATH": f"{options.program.parent}{os.pathsep}{environ.get('PATH', os.defpath)}",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_API_KEY": server.key,
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "False",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def new_key() -> str:
    """A key that nobody else knows."""
    return secrets.token_urlsafe(32)


@asynccontextmanager
async def running(
    options: VllmOptions, server: VllmServer, *, environ: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server's process, perhaps not yet ready; ended afterwards with all that it started, its socket removed.

    Its output is this process's. It stays in this process's group, and on Linux it ends when this process is killed.
    """
    server.socket.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *command_line(options, server),
        env=environment(options, server, environ=environ),
        stdin=asyncio.subprocess.DEVNULL,
        preexec_fn=_tie_to(os.getpid()) if sys.platform == "linux" else None,
    )
    try:
        yield process
    finally:
        await asyncio.to_thread(_end, process.pid)
        await process.wait()
        server.socket.unlink(missing_ok=True)


async def until_ready(server: VllmServer, process: asyncio.subprocess.Process) -> None:
    """Return once the server answers. Raises Unavailable when it ends before; it has said why in its output."""
    async with server.client() as http:
        while process.returncode is None:
            with suppress(httpx2.HTTPError):
                if (await http.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(POLL_SECONDS)
    raise Unavailable(f"vLLM ended while starting, with status {process.returncode}.", code="engine_start_failed")


def _tie_to(parent: int) -> Callable[[], None]:
    """What a child runs before its program: it asks the kernel to be ended when the parent is, however that ends."""
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def _end(pid: int) -> None:
    """SIGTERM to the process and SIGKILL, after a while, to what is left of it and of what it started."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
