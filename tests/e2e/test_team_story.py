"""The team's story of examples/team.py on a live server: who may tune, who may deploy, who may only look."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.api_server import *  # noqa: F403
from tests.api_server import Server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "team.md"
HEAD = """# A team on one server

What `python examples/team.py` prints on a server of one's own, ids shortened. A hub and a project are made; Ada becomes
an Azure AI Developer, Bo a Reader, Cy a deployment operator. Ada tunes and cannot manage hubs; Bo looks and cannot
tune; Cy deploys and cannot tune. Each refusal says which permission is missing, which role one has, and who has it.
[governance.md](governance.md) has the whole table.

```
"""
IDS = re.compile(r"\b(hub|proj|key|file|ftjob|dep|user)([_-])[A-Za-z0-9]{24}\b")
TIMES = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def test_each_does_what_the_role_allows(server: Server) -> None:
    """Hub, project, three colleagues: by command line and over HTTP each step goes as told, each refusal word for word
    as docs/team.md has it (renew it with UPDATE_SNAPSHOTS=1), and nothing is left behind."""
    env = {**os.environ, "SMEDJE_BASE_URL": server.url, "SMEDJE_API_KEY": server.key, "NO_COLOR": "1"}
    words = [sys.executable, str(ROOT / "examples" / "team.py")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    print(done.stdout)
    story = TIMES.sub("(time)", IDS.sub(r"\1\2…", done.stdout))
    text = HEAD + "\n".join(line.rstrip() for line in story.splitlines()) + "\n```\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(text, encoding="utf-8")
    assert text == PAGE.read_text(encoding="utf-8")
    for told in ("hubs.write", "files.write", "jobs.write", "members.write"):
        assert f"This needs the permission {told}" in story
    assert [hub["name"] for hub in server.get("/api/hubs").json()["data"]] == ["default"]
