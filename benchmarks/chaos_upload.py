"""Uploads cut on purpose, and a large one: python benchmarks/chaos_upload.py [--cuts 50] [--late 20] [--megabytes 1024]

Half of the cuts kill the client and half the server, with kill -9, each at a random byte of a file or of an upload's
part; then the server is killed some more, at random moments after the last byte, while it hashes, checks and records.
After each the server must list whole files only, and storage must hold nothing else. Last, a large file is uploaded in
parts of 64 MiB and half of it in one request; the peak resident memory of the server process is told. Exits 1 when
anything is wrong. Needs Linux's /proc.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openai import OpenAI
from tests.server_process import ServerProcess, server_home
from tests.upload_cuts import Cut, cut_upload, form, rows, send

PART_BYTES = 64 * 2**20
FILE_BYTES = 3 * 2**20
ONE_REQUEST = 500 * 2**20


def plan(cuts: int, late: int, draw: random.Random) -> list[Cut]:
    """The cuts, in random order of kinds and places."""
    sizes = {part: len(form(rows(0, FILE_BYTES), part=part)) for part in (False, True)}
    planned = []
    for number in range(cuts):
        part = number % 4 >= 2
        planned.append(Cut(who=("client", "server")[number % 2], at=draw.randrange(sizes[part]), part=part))
    for number in range(late):
        wait = draw.uniform(0.0, 0.6)
        planned.append(Cut(who="server", at=2**40, part=number % 4 == 3, wait=wait))
    draw.shuffle(planned)
    return planned


def memory(server: ServerProcess) -> dict[str, float]:
    """The server process's memory in MiB: peak and present resident, and the part of it that is no file's page."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    names = {"peak_resident": "VmHWM", "resident": "VmRSS", "anonymous": "RssAnon"}
    return {name: round(int(re.findall(rf"{key}:\s+(\d+)", status)[0]) / 1024, 1) for name, key in names.items()}


def large_content(size: int) -> Iterator[bytes]:
    """Chat lines of about a kibibyte, `size` bytes in all, a few mebibytes at a time; never whole."""
    words = "where is the parcel that I ordered last week and why does nobody call me back about it " * 5
    line = '{"messages": [{"role": "user", "content": "%d ' + words + '"}, {"role": "assistant", "content": "'
    line += words + '"}]}\n'
    sent = number = 0
    while sent < size:
        block = "".join(line % (number + i) for i in range(4096)).encode()
        number += 4096
        if sent + len(block) > size:
            # Cut within a line; the rest is white space, so that the last line is a cut one and every byte counts.
            block = block[: size - sent]
        sent += len(block)
        yield block


def in_parts(client: OpenAI, size: int) -> tuple[str, str]:
    """Upload `size` bytes in parts; the file's id and the SHA-256 of what was sent."""
    upload = client.uploads.create(bytes=size, filename="large.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    digest, waiting, ids = hashlib.sha256(), bytearray(), []
    for block in large_content(size):
        digest.update(block)
        waiting += block
        while len(waiting) >= PART_BYTES:
            ids.append(client.uploads.parts.create(upload.id, data=bytes(waiting[:PART_BYTES])).id)
            del waiting[:PART_BYTES]
    if waiting:
        ids.append(client.uploads.parts.create(upload.id, data=bytes(waiting)).id)
    file = client.uploads.complete(upload.id, part_ids=ids, timeout=600).file
    assert file is not None, "the upload was completed"
    return file.id, digest.hexdigest()


def in_one_request(server: ServerProcess, size: int) -> tuple[str, str]:
    """Upload `size` bytes as one streamed form; the file's id and the SHA-256 of what was sent."""
    head, tail = form(b"\0", part=False).split(b"\0")
    body = Sized(len(head) + size + len(tail))
    digest = hashlib.sha256()
    with send(server.url, "/v1/files", body, 0) as connection:
        connection.settimeout(600)
        connection.sendall(head)
        for block in large_content(size):
            digest.update(block)
            connection.sendall(block)
        connection.sendall(tail)
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.rstrip().endswith(b"}"):
            answer += connection.recv(65536)
    return json.loads(answer.partition(b"\r\n\r\n")[2])["id"], digest.hexdigest()


class Sized(bytes):
    """No bytes, but as long as it is told: the length that a request promises."""

    def __new__(cls, _: int) -> "Sized":
        return super().__new__(cls)

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def large(server: ServerProcess, megabytes: int) -> dict[str, Any]:
    """Upload a large file both ways on a fresh server: seconds, whether the bytes came back, the server's memory."""
    told: dict[str, Any] = {}
    for name, size in (("parts", megabytes * 2**20), ("one_request", min(ONE_REQUEST, megabytes * 2**19))):
        server.stop()
        server.start()
        before, began = memory(server), time.monotonic()
        with server.client() as client:
            file_id, digest = in_parts(client, size) if name == "parts" else in_one_request(server, size)
            seconds, after = time.monotonic() - began, memory(server)
            back = hashlib.sha256()
            with client.files.with_streaming_response.content(file_id) as answer:
                for piece in answer.iter_bytes(1 << 20):
                    back.update(piece)
            client.files.delete(file_id)
        told[name] = {
            "bytes": size,
            "seconds": round(seconds, 1),
            "sha256_right": back.hexdigest() == digest,
            "server_mib_before": before,
            "server_mib_after": after,
            "peak_growth_mib": round(after["peak_resident"] - before["resident"], 1),
        }
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--late", type=int, default=20, help="kills of the server after the last byte")
    parser.add_argument("--megabytes", type=int, default=1024, help="of the large upload, in MiB; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed when left out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    draw, wrong, began = random.Random(seed), [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        server = ServerProcess(server_home(Path(name)))
        server.start()
        try:
            planned = plan(arguments.cuts, arguments.late, draw)
            for number, cut in enumerate(planned):
                problem = cut_upload(server, cut, rows(seed + number, FILE_BYTES))
                if problem is not None:
                    wrong.append(f"{cut}: {problem}")
                if (number + 1) % 10 == 0:
                    print(f"{number + 1} of {len(planned)} cuts, {len(wrong)} wrong", file=sys.stderr, flush=True)
            with server.client() as client:
                listed = len(client.files.list(limit=1000).data)
            told = large(server, arguments.megabytes) if arguments.megabytes else {}
        finally:
            server.stop()
    wrong += [f"{way}: other bytes came back" for way, one in told.items() if not one["sha256_right"]]
    report = {
        "seed": seed,
        "clients_killed": sum(cut.who == "client" for cut in planned),
        "servers_killed_at_a_byte": sum(cut.who == "server" and cut.at < 2**40 for cut in planned),
        "servers_killed_after_the_last_byte": arguments.late,
        "files_listed_after_all": listed,
        "wrong": wrong,
        "large_upload": told,
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
