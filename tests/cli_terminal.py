"""A terminal whose user calls `smedje` on a live server, in this process: what it prints, and its exit code."""

import json
from pathlib import Path
from typing import Any

import pytest

from smedje.cli.main import run
from tests.api_server import Server, chat_lines

__all__ = ["smedje"]


class Terminal:
    """Runs commands as a user of one server would, and looks at what they leave behind."""

    def __init__(self, server: Server, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.server = server
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *words: str, code: int = 0) -> str:
        """Standard output of a command that must end with `code`."""
        found = run(words)
        out, err = self._capsys.readouterr()
        assert found == code, err
        return out

    def json(self, *words: str, code: int = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self(*words, "--json", code=code))

    def error(self, *words: str, code: int) -> str:
        """The line on standard error of a command that must fail with `code`."""
        found = run(words)
        out, err = self._capsys.readouterr()
        assert (found, out) == (code, ""), err
        return next(line for line in err.splitlines() if line.startswith("error: "))

    def data(self, name: str = "train.jsonl", content: bytes = b"") -> str:
        """A data file's path."""
        path = self.folder / name
        path.write_bytes(content or chat_lines(12))
        return str(path)


@pytest.fixture
def smedje(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    """A terminal in an empty folder, whose environment names the server."""
    monkeypatch.setenv("SMEDJE_BASE_URL", server.url)
    monkeypatch.setenv("SMEDJE_API_KEY", server.key)
    monkeypatch.setenv("SMEDJE_HOME", str(server.ctx.home))
    monkeypatch.chdir(tmp_path)
    return Terminal(server, capsys, tmp_path)
