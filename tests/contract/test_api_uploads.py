"""Uploads that go wrong or try to: nothing half-written stays, names never become paths, limits hold."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from tests.api_server import Server, chat_lines, make_app, make_context, serving

from smedje.errors import NotFound, TooLarge
from smedje.objects.store import open_objects
from smedje.services import files as service
from smedje.services import projects
from smedje.services.context import Context

BOUNDARY = "smedje-test-boundary"
TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, value: bytes, *, filename: str | None = None) -> bytes:
    """One part of a form."""
    extra = f'; filename="{filename}"' if filename is not None else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
PURPOSE = part("purpose", b"fine-tune")


def send(server: Server, body: bytes) -> httpx2.Response:
    """Send a form as it is."""
    with server.http() as http:
        return http.post("/v1/files", content=body, headers=TYPE)


def objects_of(ctx: Context) -> set[str]:
    """Every object and every half-written file in storage."""
    root = ctx.home / "objects"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def files_of(server: Server) -> int:
    """How many files the project has."""
    return len(server.get("/v1/files").json()["data"])


def speak(server: Server, head: str, body: bytes, *, hang_up: bool = False) -> bytes:
    """Send raw bytes and return what the server says until it hangs up. hang_up: say first that no more will come."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        lines = f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.key}\r\n{head}\r\n"
        connection.sendall(lines.encode() + body)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


@pytest.fixture
def untouched(server: Server) -> Iterator[None]:
    """Fails the test when it leaves a file or any byte in storage."""
    before = objects_of(server.ctx), files_of(server)
    yield
    # A client that hung up does not see when the server has dropped its upload.
    deadline = time.monotonic() + 10
    while objects_of(server.ctx) != before[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert objects_of(server.ctx) == before[0]
    assert files_of(server) == before[1]


def test_fields_come_in_any_order(server: Server) -> None:
    """The purpose may stand before or after the file."""
    content = chat_lines(10, text="order")
    for body in (PURPOSE + part("file", content, filename="a"), part("file", content, filename="a") + PURPOSE):
        answer = send(server, body + END)
        assert answer.status_code == 200, answer.text
        assert server.get(f"/v1/files/{answer.json()['id']}/content").content == content


def test_bytes_that_look_like_a_boundary_stay_bytes(server: Server) -> None:
    """Content with parts of the boundary, bare line ends and large size arrives exactly."""
    row = chat_lines(1)
    content = (row + b"\r\n--" + BOUNDARY[:-1].encode() + b"\r\n\r") * 30_000
    answer = send(server, PURPOSE + part("file", content, filename="odd") + END)
    assert answer.json()["bytes"] == len(content) > 3 * 2**20
    assert server.get(f"/v1/files/{answer.json()['id']}/content").content == content


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\data\\\\train.jsonl", "train.jsonl"),
        ("..", "upload"),
        ("", "upload"),
        ("smørrebrød.jsonl", "smørrebrød.jsonl"),
        ("x" * 400 + ".jsonl", "x" * 249 + ".jsonl"),
        ("a\tb\x7f\u202ec.jsonl", "abc.jsonl"),
    ],
)
def test_a_name_is_only_a_name(server: Server, name: str, kept: str) -> None:
    """Folders, control characters and excess length are taken off; the bytes lie under their digest."""
    answer = send(server, PURPOSE + part("file", chat_lines(10), filename=name) + END)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == kept
    assert all("passwd" not in key for key in objects_of(server.ctx))


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (PURPOSE + part("file", b"", filename="empty.jsonl") + END, "empty_file"),
        (PURPOSE + END, "missing_field"),
        (part("file", chat_lines(10), filename="a") + END, "missing_field"),
        (PURPOSE + part("file", chat_lines(10)) + END, "invalid_form"),
        (part("purpose", b"assistants") + part("file", chat_lines(10), filename="a") + END, "invalid_purpose"),
        (part("purpose", b"fine-tune-results") + part("file", b"x", filename="a") + END, "invalid_purpose"),
        (PURPOSE + part("file", chat_lines(10), filename="a") * 2 + END, "invalid_form"),
        (PURPOSE + PURPOSE + part("file", chat_lines(10), filename="a") + END, "invalid_form"),
        (PURPOSE + part("colour", b"red") + part("file", chat_lines(10), filename="a") + END, "unknown_field"),
        (part("purpose", b"x" * 5000) + part("file", chat_lines(10), filename="a") + END, "invalid_form"),
        (PURPOSE + part("file", chat_lines(10), filename="a")[:-9], "truncated_body"),
        (b"", "truncated_body"),
        (b"no form at all", "invalid_form"),
        (PURPOSE + part("expires_after[seconds]", b"60") + part("file", b"x", filename="a") + END, "invalid_value"),
    ],
    ids=[
        "empty file",
        "no file",
        "no purpose",
        "file without a name",
        "unknown purpose",
        "results purpose",
        "two files",
        "purpose twice",
        "unknown field",
        "long field",
        "cut off",
        "empty body",
        "no form",
        "expiry without anchor",
    ],
)
def test_a_broken_form_leaves_nothing(server: Server, body: bytes, code: str) -> None:
    """A 400 in the error shape, no file, no bytes."""
    answer = send(server, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == code


@pytest.mark.usefixtures("untouched")
def test_a_body_that_is_no_form_is_refused(server: Server) -> None:
    """JSON, or a form without a boundary, is a 400 that says how a file is uploaded."""
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 300):
        with server.http() as http:
            answer = http.post("/v1/files", content=b"{}", headers={"content-type": kind})
        assert answer.json()["error"]["code"] == "invalid_form"


@pytest.mark.usefixtures("untouched")
def test_a_length_that_promises_more_than_comes_leaves_nothing(server: Server) -> None:
    """The client goes away half-way: the upload is dropped."""
    body = PURPOSE + part("file", chat_lines(5000), filename="a")[:-2000]
    head = f"Content-Type: {TYPE['content-type']}\r\nContent-Length: {len(body) + 100_000}\r\n"
    answer = speak(server, head, body, hang_up=True)
    assert b" 200 " not in answer


@pytest.mark.usefixtures("untouched")
def test_a_length_that_promises_less_than_comes_leaves_nothing(server: Server) -> None:
    """Only as many bytes as were promised are read, so the form has no end."""
    body = PURPOSE + part("file", chat_lines(100), filename="a") + END
    head = f"Content-Type: {TYPE['content-type']}\r\nContent-Length: {len(body) - 100}\r\nConnection: close\r\n"
    assert b"truncated_body" in speak(server, head, body)


@pytest.mark.usefixtures("untouched")
def test_a_length_beyond_the_limit_is_refused_unread(server: Server) -> None:
    """A 413 before a byte of the body has come."""
    head = f"Content-Type: {TYPE['content-type']}\r\nContent-Length: {600 * 2**20}\r\nConnection: close\r\n"
    assert b"HTTP/1.1 413" in speak(server, head, b"")


def test_a_file_beyond_the_limit_leaves_nothing(server: Server) -> None:
    """The limit counts the bytes that come, whatever was promised."""
    before = objects_of(server.ctx)
    upload = service.Upload(server.ctx, limit=1000)
    upload.write(b"x" * 1000)
    with pytest.raises(TooLarge):
        upload.write(b"x")
    upload.abort()
    assert objects_of(server.ctx) == before


def test_an_expired_file_is_gone(server: Server) -> None:
    """expires_after sets expires_at; once that time has come the file is not found any more."""
    after = {"anchor": "created_at", "seconds": 3600}
    made = server.client().files.create(
        file=("a.jsonl", chat_lines(10)),
        purpose="fine-tune",
        expires_after=after,  # type: ignore[arg-type]  # the client's own type is a TypedDict
    )
    assert made.expires_at == made.created_at + 3600
    later = replace(server.ctx, now=lambda: made.created_at + 3601.0)
    with pytest.raises(NotFound):
        service.get_file(later, server.project, made.id)
    assert made.id not in [file.id for file in service.list_files(later, server.project, limit=100, order="desc")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two mebibytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "smedje-test", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not made:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    """An upload that does not fit is a 507 that must not be retried; what was written is gone, a smaller one fits."""
    ctx = replace(make_context(tmp_path), objects=open_objects((small_disk / "objects").as_uri()))
    made = projects.ensure_defaults(ctx, None, "local")
    assert made.new_secret is not None
    form = {"purpose": "fine-tune"}
    with serving(make_app(ctx)) as url, httpx2.Client(base_url=url, timeout=60) as http:
        http.headers["authorization"] = f"Bearer {made.new_secret}"
        full = http.post("/v1/files", data=form, files={"file": ("a.jsonl", chat_lines(40_000))})
        assert full.status_code == 507, full.text
        assert full.json()["error"]["code"] == "out_of_storage"
        assert full.headers["x-should-retry"] == "false"
        assert [path for path in small_disk.rglob("*") if path.is_file()] == []
        assert http.get("/v1/files").json()["data"] == []
        assert http.post("/v1/files", data=form, files={"file": ("a.jsonl", chat_lines(100))}).status_code == 200
    ctx.database.close()
