#!/usr/bin/env python3
"""Set up smedje and run its jobs from a fresh clone: `python bootstrap.py demo`, `python bootstrap.py test`.

Standard library only. Knows how to make `.venv` and which command each job is; knows nothing of what they do.
Safe to run again at any point: a stamp file, written last, says what the environment was made from.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "smedje-stamp.json"
OLDEST_PYTHON = (3, 11)
UV = "uv==0.13.9"
TRAIN = frozenset({"train"})
TEST = frozenset({"train", "dev"})
LOCK_COMMAND = "python bootstrap.py lock"
LOCK_HEADER = f"# Every version smedje is tested with. Made by: {LOCK_COMMAND}\n"


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


# --- the environment ---------------------------------------------------------------------------------------------


def ensure_env(extras: Iterable[str], *, root: Path = ROOT, verbose: bool = False) -> None:
    """Make or mend `.venv` so that smedje and these extras are installed; nothing to do takes milliseconds.

    Extras that are already there stay, so that `demo` after `test` installs nothing. Raises SetupError.
    """
    venv, stamp = root / ".venv", root / ".venv" / STAMP.name
    key, installed = read_stamp(stamp)
    wanted = installed.union(extras)
    if venv_python(venv).exists() and key == stamp_key(root, venv, wanted):
        return
    started = time.monotonic()
    create_venv(venv)
    install(root, venv, wanted, verbose=verbose)
    content = {"key": stamp_key(root, venv, wanted), "extras": sorted(wanted)}
    part = stamp.with_suffix(".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(stamp)
    say(f"environment ready in .venv ({', '.join(sorted(wanted))}; {time.monotonic() - started:.0f} s)")


def read_stamp(stamp: Path) -> tuple[str, frozenset[str]]:
    """The key and the extras of the last whole set-up; empty when there is no stamp or it is damaged."""
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
        return str(found["key"]), frozenset(str(name) for name in found["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", frozenset()


def stamp_key(root: Path, venv: Path, extras: Iterable[str]) -> str:
    """SHA-256 (hex) of everything the environment is made from: both lists, the interpreter, the extras, the place."""
    digest = hashlib.sha256()
    parts = [(root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    config = venv / "pyvenv.cfg"
    parts.append(config.read_bytes() if config.exists() else b"")
    parts += [UV.encode(), platform.machine().encode(), str(root).encode(), ",".join(sorted(extras)).encode()]
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def venv_python(venv: Path) -> Path:
    """The environment's interpreter."""
    return venv_program(venv, "python")


def venv_program(venv: Path, name: str) -> Path:
    """A program installed in the environment, wherever this system puts such programs."""
    return venv / "Scripts" / f"{name}.exe" if os.name == "nt" else venv / "bin" / name


def create_venv(venv: Path) -> None:
    """Make the environment unless a working one is there. A broken or too old one is made again."""
    python = venv_python(venv)
    if python.exists():
        check = f"import sys, pip; sys.exit(sys.version_info < {OLDEST_PYTHON})"
        if quiet([str(python), "-c", check]) == 0:
            return
        say("the environment in .venv does not work; making it again")
    else:
        say(f"making .venv with Python {platform.python_version()}")
    if quiet([sys.executable, "-m", "venv", "--clear", str(venv)]) != 0:
        raise SetupError(
            f"{sys.executable} could not make a virtual environment in {venv}. "
            "On Debian and Ubuntu install the package python3-venv, then run this again."
        )


def install(root: Path, venv: Path, extras: Iterable[str], *, verbose: bool) -> None:
    """Install smedje (editable) with its extras at the pinned versions: through uv, else through pip."""
    python = str(venv_python(venv))
    options = pip_options(python)
    torch = "train" in extras
    backend = torch_backend(options, python_tag(venv)) if torch else []
    requirement = [f"-e.[{','.join(sorted(extras))}]" if extras else "-e.", "-c", "constraints.txt"]
    loud = [] if verbose else ["--quiet"]
    say("installing smedje and its pinned packages" + (" (torch for CPU)" if backend else ""))
    if quiet([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV]) == 0:
        uv = [str(venv_program(venv, "uv")), "pip", "install", "--python", python, *loud, *backend, *requirement]
        if run(uv, cwd=root, env=uv_environment(options)) == 0:
            return
    say("uv could not do it; trying pip, which takes some minutes")
    if backend and quiet([python, "-c", "import importlib.metadata as m; m.version('torch')"]) != 0:
        raise SetupError(
            "uv failed, and pip alone would fetch torch's CUDA build (several GB) on a machine without an NVIDIA GPU. "
            "See uv's message above; or put torch's CPU wheel in a folder, set PIP_FIND_LINKS to it, and try again."
        )
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", *loud, *requirement]
    if run(command, cwd=root, env=os.environ) != 0:
        raise SetupError("Neither uv nor pip could install the packages; the reason stands above. Is there a network?")


def pip_options(python: str) -> dict[str, str]:
    """What pip is configured with on this machine (files and PIP_ variables): option name -> value."""
    command = [python, "-m", "pip", "config", "list"]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return parse_pip_config(found.stdout)


def parse_pip_config(text: str) -> dict[str, str]:
    """The lines of `pip config list` as options. Environment variables win, as they do in pip."""
    options: dict[str, str] = {}
    for line in sorted(text.splitlines(), key=lambda line: line.startswith(":env:")):
        section, found, value = line.partition("=")
        name = section.rpartition(".")[2]
        if found and section.startswith(("global.", "install.", ":env:")):
            options[name] = str(ast.literal_eval(value))
    return options


def uv_environment(options: Mapping[str, str]) -> dict[str, str]:
    """The environment in which uv sees what pip is configured with: it reads none of pip's settings by itself."""
    env = dict(os.environ)
    env.setdefault("UV_LINK_MODE", "copy" if os.name == "nt" else "hardlink")
    for option, name, joiner in (
        ("find-links", "UV_FIND_LINKS", ","),
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("default-timeout", "UV_HTTP_TIMEOUT", " "),
        ("timeout", "UV_HTTP_TIMEOUT", " "),
        ("cert", "SSL_CERT_FILE", " "),
    ):
        value = joiner.join(options.get(option, "").split())
        if value:
            env.setdefault(name, value)
    if "extra-index-url" in options:
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip too takes the best version of any index
    return env


def torch_backend(options: Mapping[str, str], tag: str) -> list[str]:
    """uv's flags that keep CUDA off a machine without an NVIDIA GPU.

    None are needed where pip already looks at a folder with a torch wheel for this interpreter, and off Linux, where
    the ordinary torch has no CUDA in it.
    """
    if not sys.platform.startswith("linux") or has_nvidia_gpu():
        return []
    for place in options.get("find-links", "").split():
        folder = Path(place.removeprefix("file://")).expanduser()
        if folder.is_dir() and any(folder.glob(f"torch-*-{tag}-*.whl")):
            return []
    return ["--torch-backend", "cpu"]


def python_tag(venv: Path) -> str:
    """The wheel tag of the environment's interpreter, such as cp311."""
    found = re.search(r"^version(?:_info)? *= *(\d+)\.(\d+)", (venv / "pyvenv.cfg").read_text("utf-8"), re.MULTILINE)
    return f"cp{found[1]}{found[2]}" if found else f"cp{sys.version_info.major}{sys.version_info.minor}"


def has_nvidia_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


# --- jobs --------------------------------------------------------------------------------------------------------


def job_setup(rest: Sequence[str]) -> int:
    """make the environment in .venv"""
    ensure_env(TRAIN, verbose="-v" in rest)
    say("next: python bootstrap.py demo")
    return 0


def job_demo(rest: Sequence[str]) -> int:
    """set up, then fine-tune, evaluate and deploy a small model on this machine"""
    ensure_env(TRAIN)
    return run([str(venv_program(VENV, "smedje")), "demo", *rest])


def job_serve(rest: Sequence[str]) -> int:
    """set up, then start the server"""
    ensure_env(TRAIN)
    return run([str(venv_program(VENV, "smedje")), "serve", *rest])


def job_test(rest: Sequence[str]) -> int:
    """set up, then run the whole test suite; arguments go to pytest"""
    ensure_env(TEST)
    return run([str(venv_python(VENV)), "-m", "pytest", *test_workers(rest), *rest], env=one_thread_each())


def job_check(rest: Sequence[str]) -> int:
    """lint, format, types, import rules and size budgets, all of them even when one fails"""
    ensure_env(TEST)
    python = str(venv_python(VENV))
    steps = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "import rules": [str(venv_program(VENV, "lint-imports"))],
        "budgets": [python, "-m", "pytest", "-q", "tests/architecture"],
    }
    failed = [name for name, command in steps.items() if announced(name, [*command, *rest]) != 0]
    say(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def job_fix(rest: Sequence[str]) -> int:
    """mend what ruff can mend, and format"""
    ensure_env(TEST)
    python = str(venv_python(VENV))
    fixed = run([python, "-m", "ruff", "check", "--fix", ".", *rest])
    return run([python, "-m", "ruff", "format", "."]) or fixed


def job_bench(rest: Sequence[str]) -> int:
    """run one benchmark by name: bench NAME [--json OUT]"""
    ensure_env(TRAIN)
    names = sorted(p.stem for p in (ROOT / "benchmarks").glob("[!_]*.py"))
    if not rest or rest[0] not in names:
        raise SetupError(f"Name one benchmark: {', '.join(names) or 'there are none yet'}.")
    return run([str(venv_python(VENV)), str(ROOT / "benchmarks" / f"{rest[0]}.py"), *rest[1:]])


def job_lock(rest: Sequence[str]) -> int:
    """resolve constraints.txt anew from pyproject.toml, for every system and Python at once"""
    ensure_env(TEST)
    target = ROOT / "constraints.txt"
    command = [str(venv_program(VENV, "uv")), "pip", "compile", "--universal", "--python-version", "3.11"]
    command += ["--no-header", "--no-annotate", "--all-extras", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--quiet", "pyproject.toml", *rest]
    # Without pip's find-links: a local CPU build there would put its own version label into the lock.
    plain = {k: v for k, v in uv_environment(pip_options(str(venv_python(VENV)))).items() if k != "UV_FIND_LINKS"}
    found = subprocess.run(
        command, cwd=ROOT, env=plain, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    if found.returncode != 0:
        return found.returncode
    if "://" in found.stdout:
        raise SetupError("The resolved list names an address; constraints.txt must hold versions only.")
    target.write_text(LOCK_HEADER + found.stdout, encoding="utf-8", newline="\n")
    say(f"wrote {target.name}: {len(found.stdout.splitlines())} versions")
    return 0


JOBS = {
    "setup": job_setup,
    "demo": job_demo,
    "test": job_test,
    "check": job_check,
    "fix": job_fix,
    "serve": job_serve,
    "bench": job_bench,
    "lock": job_lock,
}


def test_workers(rest: Sequence[str]) -> list[str]:
    """pytest-xdist's flags: one process for each usable core, at most four, with a file's tests kept together."""
    if any(word.startswith(("-n", "--numprocesses", "--dist", "-p", "--pdb")) for word in rest):
        return []
    return ["-n", str(min(4, max(2, usable_cores()))), "--dist", "loadfile"]


def one_thread_each() -> dict[str, str]:
    """The environment for test processes: one compute thread each, since several spin against one another."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- running things ----------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One line for the reader; standard error, so that a job's own output stays clean."""
    print(f"smedje: {text}", file=sys.stderr, flush=True)


def announced(name: str, command: Sequence[str]) -> int:
    """Run a step under its name."""
    say(name)
    return run(command)


def run(command: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> int:
    """Run a command with our output as its output; its exit code. Ctrl-C reaches it and is left to it."""
    process = subprocess.Popen(command, cwd=cwd, env=env)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def quiet(command: Sequence[str]) -> int:
    """Run a command without its output; its exit code."""
    null = subprocess.DEVNULL
    return subprocess.run(command, cwd=ROOT, stdin=null, stdout=null, stderr=null, check=False).returncode


def newer_python() -> str | None:
    """A Python on PATH that is new enough, when this one is not."""
    found = (shutil.which(f"python3.{minor}") for minor in (13, 12, 11))
    return next((path for path in found if path), None)


def main(argv: Sequence[str]) -> int:
    """Run the job that the command line names."""
    if sys.version_info < OLDEST_PYTHON:
        newer = newer_python()
        if newer is None:
            say(f"needs Python 3.11 or newer; this is {platform.python_version()}. Install one and run it with that.")
            return 2
        return run([newer, str(Path(__file__).resolve()), *argv])
    lines = "\n".join(f"  {name:<7} {job.__doc__}" for name, job in JOBS.items())
    parser = argparse.ArgumentParser(
        prog="bootstrap.py", epilog=f"jobs:\n{lines}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=JOBS, metavar="JOB")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to the job")
    chosen = parser.parse_args(argv)
    try:
        return JOBS[chosen.job](chosen.rest)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run the same command to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
