"""`smedje demo` from nothing to an answer, with the smallest model of the catalog."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from smedje.cli.demo import running_server


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    """Pull, server, data, estimate, job, evaluation, deployment, two answers, and no process left."""
    home = tmp_path / "demo"
    result = subprocess.run([*command(home), "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["fine_tuned_model"].startswith("ft:phi-3-tiny-random:default:demo:")
    assert found["estimate"]["n_epochs"] == 1
    assert found["evaluation"]["tuned"]["loss"] < found["evaluation"]["base"]["loss"]
    assert found["answers"].keys() == {"base", "tuned"}
    assert (home / "models" / "phi-3-tiny-random" / "smedje.json").is_file()
    assert found["server_pid"] is None
    assert left_behind(home) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals work otherwise on Windows")
def test_ctrl_c_ends_the_demo_and_all_it_started(tmp_path: Path) -> None:
    """In the middle of training: exit code 130, no trace, and neither server nor worker goes on."""
    home = tmp_path / "demo"
    with subprocess.Popen(command(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any(" step 1/" in line for line in demo.stdout)
        assert len(left_behind(home)) >= 2
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert left_behind(home) == []


@pytest.mark.parametrize("keep", [False, True])
def test_a_server_is_left_only_when_asked(tmp_path: Path, keep: bool) -> None:
    """--keep leaves the demo's server running after a good end; without it, and after a bad one, it is stopped."""
    with running_server(tmp_path, keep=keep) as (client, process):
        assert client.get("/v1/models")["object"] == "list"
    assert (process.poll() is None) is keep
    process.terminate()
    process.wait(timeout=60)
    with pytest.raises(ZeroDivisionError), running_server(tmp_path, keep=keep) as (_, process):
        raise ZeroDivisionError
    assert process.poll() is not None


def command(home: Path) -> list[str]:
    """The demo with the smallest model, once over the data."""
    words = [sys.executable, "-m", "smedje.cli", "demo", "--home", str(home)]
    return [*words, "--model", "phi-3-tiny-random", "--epochs", "1"]


def left_behind(home: Path) -> list[int]:
    """Running processes that have to do with this state folder, the demo itself among them."""
    found = []
    for process in psutil.process_iter():
        try:
            about = [*process.cmdline(), process.environ().get("SMEDJE_HOME", "")]
        except psutil.Error:
            continue
        if any(str(home) in word for word in about) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found
