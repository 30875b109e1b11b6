"""Uploads that are cut on purpose: the client killed, or the server, at a chosen byte or after the last one.

Knows what must hold afterwards: a file is listed with the bytes that its SHA-256 names or not at all, and storage holds
nothing that belongs to no file and no live upload.
"""

import hashlib
import json
import os
import random
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from smedje.domain.files import content_key, report_key
from tests.server_process import KEY, ServerProcess, wait_for

BOUNDARY = "smedje-cut-boundary"


@dataclass(frozen=True)
class Cut:
    """Where an upload breaks off. who: whose process is killed. at: bytes of the request's body that were sent before.

    part: whether it is a part of an upload instead of a file. wait: seconds between the last byte and the kill.
    """

    who: str
    at: int
    part: bool
    wait: float = 0.0


def rows(seed: int, size: int) -> bytes:
    """At least `size` bytes of chat lines, different for every seed."""
    draw = random.Random(seed)
    lines: list[bytes] = []
    written = 0
    while written < size:
        question, answer = (" ".join(draw.choices(("where", "is", "the", "parcel", "today"), k=60)) for _ in range(2))
        messages = [
            {"role": "user", "content": f"{seed} {len(lines)} {question}"},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}).encode() + b"\n")
        written += len(lines[-1])
    return b"".join(lines)


def form(content: bytes, *, part: bool) -> bytes:
    """The multipart body of a file, or of an upload's part."""
    head = "" if part else f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    name = "data" if part else "file"
    head += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="cut.jsonl"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def send(url: str, path: str, body: bytes, until: int) -> socket.socket:
    """Begin a POST of the whole body and send it up to byte `until`."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[:until])
    return connection


def cut_upload(server: ServerProcess, cut: Cut, content: bytes) -> str | None:
    """Upload `content` and cut it; the server runs again afterwards. Returns what is wrong then, None when all is well.

    The upload to which a part belonged is cancelled before storage is looked at.
    """
    body, path, upload_id = form(content, part=cut.part), "/v1/files", None
    if cut.part:
        with server.client() as client:
            made = client.uploads.create(
                bytes=len(content), filename="cut.jsonl", mime_type="text/jsonl", purpose="fine-tune"
            )
        path, upload_id = f"/v1/uploads/{made.id}/parts", made.id
    if cut.who == "client":
        _killed_client(server.url, path, body, cut)
    else:
        with send(server.url, path, body, cut.at):
            # The moment is what is tested here, so there is nothing to wait for but time.
            time.sleep(cut.wait)
            server.kill()
        server.start()
    if upload_id is not None:
        with server.client() as client:
            client.uploads.cancel(upload_id)
    return what_is_wrong(server)


def what_is_wrong(server: ServerProcess, *, seconds: float = 20.0) -> str | None:
    """The first thing that does not hold: a listed file without its bytes, or bytes without a file."""
    deadline = time.monotonic() + seconds
    while True:
        told = _wrong_now(server)
        # A server needs a moment to see that a client has gone.
        if told is None or time.monotonic() > deadline:
            return told
        time.sleep(0.05)


def _wrong_now(server: ServerProcess) -> str | None:
    expected: set[str] = set()
    with server.client() as client:
        listed = client.files.list(limit=1000).data
        root = server.home / "objects"
        found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        for file in listed:
            digest = hashlib.sha256(client.files.content(file.id).read()).hexdigest()
            expected |= {content_key(digest), report_key(file.id)}
    for key in found:
        if key.startswith("sha256/") and hashlib.sha256((root / key).read_bytes()).hexdigest() != Path(key).name:
            return f"{key} has other bytes"
    if missing := expected - found:
        return f"missing: {sorted(missing)}"
    if left := {key for key in found - expected if not key.endswith("/record.json")}:
        return f"left behind: {sorted(left)}"
    return None


def _killed_client(url: str, path: str, body: bytes, cut: Cut) -> None:
    """A process that sends up to the cut, and is then killed with kill -9."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            connection = send(url, path, body, cut.at)
            os.write(told, b"1")
            signal.pause()
            connection.close()
        finally:
            os._exit(1)
    os.close(told)
    wait_for(lambda: os.read(ready, 1), what="the client")
    os.close(ready)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
