"""bootstrap.py: the environment is made from what it should be, made once, and without surprises."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402


def make_clone(folder: Path) -> Path:
    """A folder that looks like a clone whose environment exists, but without a stamp."""
    folder.mkdir(exist_ok=True)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    python = bootstrap.venv_python(folder / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    (folder / ".venv" / "pyvenv.cfg").write_text("version = 3.11.7\n")
    return folder


def stamp(clone: Path, extras: set[str]) -> None:
    """Write the stamp that a whole set-up would have left."""
    key = bootstrap.stamp_key(clone, clone / ".venv", extras)
    names = ", ".join(f'"{name}"' for name in sorted(extras))
    (clone / ".venv" / bootstrap.STAMP.name).write_text(f'{{"key": "{key}", "extras": [{names}]}}')


def test_nothing_is_done_when_the_stamp_is_right(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A second call returns without a word, and so does one that asks for less than is installed."""
    clone = make_clone(tmp_path)
    stamp(clone, {"train", "dev"})
    bootstrap.ensure_env({"train", "dev"}, root=clone)
    bootstrap.ensure_env({"train"}, root=clone)
    assert capfd.readouterr() == ("", "")


def test_the_stamp_depends_on_everything_the_environment_is_made_from(tmp_path: Path) -> None:
    """Another dependency list, lock, interpreter, set of extras or place gives another key."""
    clone = make_clone(tmp_path / "a")
    venv = clone / ".venv"
    keys = [bootstrap.stamp_key(clone, venv, {"train"}), bootstrap.stamp_key(clone, venv, {"train", "dev"})]
    keys.append(bootstrap.stamp_key(make_clone(tmp_path / "b"), tmp_path / "b" / ".venv", {"train"}))
    for name in ("pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"):
        with (clone / name).open("a") as file:
            file.write("# changed\n")
        keys.append(bootstrap.stamp_key(clone, venv, {"train"}))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"key": "k", "extras": 3}', "\x00"])
def test_a_damaged_stamp_counts_as_none(tmp_path: Path, text: str) -> None:
    """Whatever an interrupted write or a curious editor left, set-up simply runs again."""
    file = tmp_path / "stamp.json"
    file.write_text(text)
    assert bootstrap.read_stamp(file) == ("", frozenset())
    assert bootstrap.read_stamp(tmp_path / "missing") == ("", frozenset())


def test_pip_settings_are_read_from_files_and_environment() -> None:
    """The environment wins over files; options of other pip commands are left alone."""
    text = (
        ":env:.find-links='/b'\nglobal.find-links='/a'\nglobal.extra-index-url='https://x/simple\\nhttps://y/simple'\n"
        "install.timeout='9'\ndownload.no-cache='1'\nnonsense\n"
    )
    assert bootstrap.parse_pip_config(text) == {
        "find-links": "/b",
        "extra-index-url": "https://x/simple\nhttps://y/simple",
        "timeout": "9",
    }


def test_uv_is_handed_what_pip_is_configured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, indexes, certificate and timeout reach uv under its own names; what is set for uv already stays."""
    for name in list(os.environ):
        if name.startswith("UV_") or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "5")
    options = {
        "find-links": "/a /b",
        "index-url": "https://mirror/simple",
        "extra-index-url": "https://x/simple\nhttps://y/simple",
        "cert": "/ca.pem",
        "timeout": "60",
    }
    env = bootstrap.uv_environment(options)
    assert env["UV_FIND_LINKS"] == "/a,/b"
    assert env["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    assert env["UV_INDEX"] == "https://x/simple https://y/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["SSL_CERT_FILE"] == "/ca.pem"
    assert env["UV_HTTP_TIMEOUT"] == "5"
    assert "UV_INDEX_STRATEGY" not in bootstrap.uv_environment({})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the ordinary torch has no CUDA in it")
@pytest.mark.skipif(bootstrap.has_nvidia_gpu(), reason="with a GPU the ordinary torch is the right one")
def test_cuda_is_never_fetched_without_a_gpu(tmp_path: Path) -> None:
    """uv is told to take the CPU build, unless pip's folder has a torch wheel for this very interpreter."""
    options = {"find-links": f"https://example.org/wheels {tmp_path}"}
    cpu = ["--torch-backend", "cpu"]
    assert bootstrap.torch_backend({}, "cp311") == cpu
    assert bootstrap.torch_backend(options, "cp311") == cpu
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    assert bootstrap.torch_backend(options, "cp312") == cpu
    assert bootstrap.torch_backend(options, "cp311") == []


def test_the_wheel_tag_is_that_of_the_environment(tmp_path: Path) -> None:
    """A bootstrap run by another Python than the environment's still looks for the environment's wheels."""
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.4\n")
    assert bootstrap.python_tag(tmp_path) == "cp312"


def test_workers_are_chosen_unless_pytest_is_told() -> None:
    """Two to four processes by default; a choice on the command line, or a debugger, is left alone."""
    assert bootstrap.test_workers(["-k", "chat"])[0] == "-n"
    assert 2 <= int(bootstrap.test_workers([])[1]) <= 4
    assert bootstrap.test_workers(["-n0"]) == bootstrap.test_workers(["--pdb"]) == []


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the script as a user does."""
    command = [sys.executable, ROOT / "bootstrap.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_help_names_every_job() -> None:
    """`python bootstrap.py --help` lists the jobs with a line each; an unknown job is a usage error."""
    result = run("--help")
    assert result.returncode == 0
    for name, job in bootstrap.JOBS.items():
        assert job.__doc__ is not None
        assert re.search(rf"^  {name} +{re.escape(job.__doc__)}$", result.stdout, re.MULTILINE)
    assert run("tset").returncode == 2


def test_make_offers_the_same_jobs_and_ci_runs_make_test() -> None:
    """The Makefile's targets are the script's jobs; CI is `make test` and nothing else."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^JOBS := (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    assert targets[1].split() == list(bootstrap.JOBS)
    entry = ROOT / ".ci" / "run"
    assert os.access(entry, os.X_OK)
    assert "make test" in entry.read_text()


def test_the_lock_pins_every_direct_requirement_and_names_no_address() -> None:
    """Each package of pyproject.toml, extras included, has exactly one line per system, without a URL."""
    text = (ROOT / "constraints.txt").read_text()
    assert text.startswith(bootstrap.LOCK_HEADER)
    assert "://" not in text
    assert all("==" in line for line in text.splitlines()[1:])
    pinned = {normal(line.split("==")[0]) for line in text.splitlines()[1:]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {normal(re.split(r"[^A-Za-z0-9_.-]", line)[0]) for group in groups for line in group}
    assert not wanted - pinned


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
