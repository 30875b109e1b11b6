"""How a command ends: exit codes, the two lines on standard error, and no trace."""

import subprocess
import sys
from pathlib import Path

import pytest

from smedje import __version__, errors
from smedje.cli import exits
from smedje.cli.main import run


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidRequest, 1),
        (errors.InvalidData, 1),
        (errors.InternalError, 1),
        (errors.NotFound, 3),
        (errors.AuthenticationFailed, 4),
        (errors.PermissionDenied, 4),
        (errors.LimitExceeded, 5),
        (errors.TooLarge, 5),
        (errors.OutOfStorage, 5),
        (errors.Conflict, 6),
        (errors.Unavailable, 7),
    ],
)
def test_each_kind_of_error_has_its_exit_code(kind: type[errors.SmedjeError], code: int) -> None:
    """Scripts can tell a missing object from a missing key from a full disk."""
    assert exits.exit_code(kind("text")) == code


def test_an_error_is_one_line_and_its_remedy_another() -> None:
    """A message with line breaks stays one line, so that the next line is always the remedy."""
    lines = exits.error_lines(errors.Unavailable("No server\nanswers.", code="server_unreachable"))
    assert lines[0] == "error: No server answers."
    assert lines[1].startswith("fix: ")
    assert len(exits.error_lines(errors.NotFound("There is no file x."))) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["jobs", "lsit"],
        ["jobs", "create"],
        ["jobs", "create", "file-x", "--model", "m", "--epochs", "many"],
        ["jobs", "create", "file-x", "--model", "m", "--option", "lora_rank"],
        ["jobs", "create", "file-x", "--model", "m", "--metadata", "=x"],
        ["serve", "--host", "0.0.0.0"],
        ["serve", "--port", "70000"],
        ["files", "content", "file-x", "--json"],
        ["models", "remove", "ft:a:b:c:dddddddd"],
        ["--nothing"],
    ],
)
def test_a_slip_on_the_command_line_is_code_2_and_sends_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what is wrong and where the help is; no server is asked (there is none)."""
    monkeypatch.setenv("SMEDJE_HOME", str(tmp_path))
    monkeypatch.setenv("SMEDJE_BASE_URL", "http://127.0.0.1:9")
    assert run(words) == exits.USAGE
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert first.startswith("error: ")
    assert second.startswith("fix: see `smedje ")


def test_without_words_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`smedje` alone shows what there is, and counts as a slip; --version is one line."""
    assert run([]) == exits.USAGE
    assert "Commands:" in capsys.readouterr().out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"smedje {__version__}\n"


def test_a_misspelt_setting_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that reads settings stops at an unknown variable and names it."""
    monkeypatch.setenv("SMEDJE_HOEM", str(tmp_path))
    assert run(["models", "list"]) == exits.FAILED
    assert "SMEDJE_HOEM" in capsys.readouterr().err


def test_a_fault_of_ours_leaves_its_trace_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal gets two lines; the trace goes to a file that the second line names."""
    assert exits.unexpected(ValueError("first line\nsecond line")) == exits.FAILED
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: unexpected ValueError: first line second line"
    file = Path(second.split(" with ")[1])
    assert "ValueError: first line" in file.read_text()
    file.unlink()


def test_a_missing_package_is_named_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """Where only the control plane is installed, the line says what to install."""
    assert exits.unexpected(ModuleNotFoundError("No module named 'gguf'", name="gguf")) == exits.UNAVAILABLE
    first, second = capsys.readouterr().err.splitlines()
    assert "gguf" in first
    assert "smedje[train]" in second


def test_a_closed_pipe_is_no_fault(tmp_path: Path) -> None:
    """`smedje models list | head -1` ends without a word on standard error."""
    command = f'"{sys.executable}" -m smedje.cli models list | head -1'
    env = {"SMEDJE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=env)
    assert result.stdout.startswith("NAME")
    assert result.stderr == ""
