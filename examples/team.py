"""A team on one server: a hub, a project, three colleagues, and what each may do, with every refusal's words.

    smedje serve
    python examples/team.py            # once by command line, once over HTTP

Needs the server's owner key (SMEDJE_API_KEY, or the state folder's for a server on this machine) and an installed base
model. Prints a transcript; everything that it makes is deleted again.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADA, BO, CY = "ada@example.org", "bo@example.org", "cy@example.org"
ROLES = {ADA: "ai_developer", BO: "reader", CY: "deployment_operator"}
DATA = "notes.jsonl"
REFUSED = 4  # The command line's exit code for a missing permission.


def rows() -> bytes:
    """A small training file."""
    pairs = [(f"What does note {n} say?", f"Note {n} says hello.") for n in range(12)]
    lines = ([{"role": "user", "content": asked}, {"role": "assistant", "content": told}] for asked, told in pairs)
    return b"".join(json.dumps({"messages": one}).encode() + b"\n" for one in lines)


@dataclass
class Shell:
    """Types commands as somebody, in a folder that holds the training file."""

    folder: Path
    base_url: str

    def type(self, who: str, key: str, line: str, *, project: str = "", refused: bool = False) -> str:
        """Run one command and print it with what it says; its output. Stops the story when it does not go as told."""
        env = {**os.environ, "SMEDJE_BASE_URL": self.base_url, "SMEDJE_API_KEY": key, "SMEDJE_PROJECT": project}
        words = [part.replace("+", " ") for part in line.split()]
        done = subprocess.run(
            [sys.executable, "-m", "smedje.cli", *words], cwd=self.folder, env=env, capture_output=True, text=True
        )
        shown = done.stderr if refused else done.stdout
        if words[:2] == ["keys", "create"]:
            shown = "(the key's secret)"
        elif "--json" in words and not refused:
            shown = _brief(json.loads(shown or "{}"))
        print(f"{who}$ smedje {' '.join(repr(part) if ' ' in part else part for part in words)}\n{shown.strip()}\n")
        if done.returncode != (REFUSED if refused else 0):
            sys.exit(f"exit code {done.returncode}, which the story does not tell: {done.stderr}")
        return done.stdout.strip()


@dataclass
class Http:
    """Sends requests as somebody."""

    base_url: str

    def ask(self, who: str, key: str, line: str, body: Any = None, *, project: str = "", status: int = 200) -> Any:
        """Send one request and print it with its answer; the answer. Stops the story when it does not go as told."""
        method, path = line.split()
        headers = {"authorization": f"Bearer {key}", **({"openai-project": project} if project else {})}
        data, kind = _encoded(body)
        request = urllib.request.Request(self.base_url + path, data, {**headers, **kind}, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                found, told = answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            found, told = error.code, json.load(error)
        shown = "" if body is None else f" {DATA}" if isinstance(body, bytes) else f" {json.dumps(body)}"
        problem = told.get("error") or {}
        said = f"{problem.get('code')}: {problem.get('message')}" if problem else _brief(told)
        print(f"{who}> {method} {path}{shown}\n{found} {said}\n")
        if found != status:
            sys.exit(f"status {found}, which the story does not tell")
        return told


def _encoded(body: Any) -> tuple[bytes | None, Mapping[str, str]]:
    """A body and its kind: JSON, or (bytes) the upload of a training file."""
    if body is None:
        return None, {}
    if not isinstance(body, bytes):
        return json.dumps(body).encode(), {"content-type": "application/json"}
    edge = "a-line-that-is-in-no-file"
    fields = f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    file = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{DATA}"\r\n\r\n'
    data = fields.encode() + file.encode() + body + f"\r\n--{edge}--\r\n".encode()
    return data, {"content-type": f"multipart/form-data; boundary={edge}"}


def _brief(told: Mapping[str, Any]) -> str:
    """The telling fields of an answer."""
    names = ("id", "email", "name", "role", "role_name", "scope", "status", "model", "deleted")
    kept = {name: told[name] for name in names if told.get(name) is not None}
    return json.dumps(kept) if kept else f"{len(told.get('data', ()))} found"


def by_command_line(shell: Shell, owner: str, model: str) -> None:
    """The story, typed."""
    shell.type("owner", owner, "hubs create forge --description Bells+and+anvils --json")
    project = json.loads(shell.type("owner", owner, "projects create bells --hub forge --json"))["id"]
    keys = {}
    for who, role in ROLES.items():
        shell.type("owner", owner, f"members add {who} --role {role}", project=project)
        keys[who] = shell.type("owner", owner, f"keys create {who.partition('@')[0]} --member {who}", project=project)
    file = json.loads(shell.type("ada", keys[ADA], f"files upload {DATA} --json"))["id"]
    job = json.loads(shell.type("ada", keys[ADA], f"jobs create {file} --model {model} --json"))["id"]
    shell.type("ada", keys[ADA], "hubs create anvil", refused=True)
    shell.type("ada", keys[ADA], f"members add {BO} --role owner", refused=True)
    shell.type("bo", keys[BO], "files list")
    shell.type("bo", keys[BO], f"files delete {file}", refused=True)
    shell.type("bo", keys[BO], f"jobs cancel {job}", refused=True)
    shell.type("cy", keys[CY], f"deployments create ring --model {model} --json")
    shell.type("cy", keys[CY], f"jobs create {file} --model {model}", refused=True)
    shell.type("cy", keys[CY], "deployments delete ring")
    shell.type("ada", keys[ADA], f"jobs cancel {job} --json")
    settle(shell.base_url, keys[ADA], job)
    shell.type("ada", keys[ADA], f"files delete {file}")
    shell.type("owner", owner, f"projects delete {project}")
    shell.type("owner", owner, "hubs delete forge")


def over_http(http: Http, owner: str, model: str) -> None:
    """The same story, sent."""
    hub = http.ask("owner", owner, "POST /api/hubs", {"name": "forge", "description": "Bells and anvils"})["id"]
    project = http.ask("owner", owner, "POST /api/projects", {"name": "bells", "hub": "forge"})["id"]
    keys = {}
    for who, role in ROLES.items():
        http.ask("owner", owner, f"PUT /api/members/{who}", {"role": role}, project=project)
        body = {"name": who.partition("@")[0], "member": who}
        keys[who] = http.ask("owner", owner, "POST /api/keys", body, project=project)["secret"]
    file = http.ask("ada", keys[ADA], "POST /v1/files", rows())["id"]
    wanted = {"model": model, "training_file": file}
    job = http.ask("ada", keys[ADA], "POST /v1/fine_tuning/jobs", wanted)["id"]
    http.ask("ada", keys[ADA], "POST /api/hubs", {"name": "anvil"}, status=403)
    http.ask("ada", keys[ADA], f"PATCH /api/hubs/{hub}", {"archived": True}, status=403)
    http.ask("ada", keys[ADA], f"PUT /api/members/{BO}", {"role": "owner"}, status=403)
    http.ask("bo", keys[BO], "GET /v1/files")
    http.ask("bo", keys[BO], "POST /v1/files", rows(), status=403)
    http.ask("bo", keys[BO], "POST /v1/fine_tuning/jobs", wanted, status=403)
    http.ask("cy", keys[CY], "POST /api/deployments", {"name": "ring", "model": model})
    http.ask("cy", keys[CY], "POST /v1/fine_tuning/jobs", wanted, status=403)
    http.ask("cy", keys[CY], "DELETE /api/deployments/ring")
    http.ask("ada", keys[ADA], f"POST /v1/fine_tuning/jobs/{job}/cancel")
    settle(http.base_url, keys[ADA], job)
    http.ask("ada", keys[ADA], f"DELETE /v1/files/{file}")
    http.ask("owner", owner, f"DELETE /api/projects/{project}")
    http.ask("owner", owner, f"DELETE /api/hubs/{hub}")


def settle(base_url: str, key: str, job: str) -> None:
    """Wait until a cancelled job has ended: its worker may need a moment."""
    address, headers = f"{base_url}/v1/fine_tuning/jobs/{job}", {"authorization": f"Bearer {key}"}
    for _ in range(300):
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            if json.load(answer)["status"] in ("cancelled", "failed", "succeeded"):
                return
        time.sleep(0.2)
    sys.exit(f"{job} has not ended within a minute")


def owner_key() -> str:
    """The key of the server's owner, as the command line finds it."""
    from smedje.cli.client import read_owner_key
    from smedje.settings import load_settings

    return os.environ.get("SMEDJE_API_KEY") or read_owner_key(load_settings().home)


def base_model(base_url: str, key: str) -> str:
    """An installed base model, the first that the server lists."""
    request = urllib.request.Request(f"{base_url}/v1/models", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        found = [one["id"] for one in json.load(answer)["data"] if not one["id"].startswith("ft:")]
    return str(found[0]) if found else sys.exit("no base model is installed: smedje models pull NAME")


@contextmanager
def folder_with_data() -> Iterator[Path]:
    """A folder that holds the training file."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / DATA).write_bytes(rows())
        yield Path(name)


def main() -> None:
    """Both ways, one after the other."""
    base_url = os.environ.get("SMEDJE_BASE_URL", "http://127.0.0.1:8321").rstrip("/")
    key = owner_key() or sys.exit("no owner key: set SMEDJE_API_KEY")
    model = base_model(base_url, key)
    print("## By command line\n")
    with folder_with_data() as folder:
        by_command_line(Shell(folder, base_url), key, model)
    print("## Over HTTP\n")
    over_http(Http(base_url), key, model)


if __name__ == "__main__":
    main()
