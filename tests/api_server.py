"""A live server on a free loopback port, with a tiny random base model and real engines. No scheduler: jobs stay."""

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from openai import OpenAI

from smedje.api.app import create_app
from smedje.api.connection import Connection
from smedje.api.state import Services
from smedje.domain.ids import HUB, PROJECT, new_id
from smedje.domain.projects import Hub, Project
from smedje.executors.base import worker_environment
from smedje.executors.local import LocalExecutor
from smedje.modeling.folder import model_folder, write_manifest
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.objects.store import open_objects
from smedje.services import projects
from smedje.services.chat import Chat
from smedje.services.context import Context
from smedje.serving.supervisor import EnginePool, EngineSettings
from smedje.store import projects as project_rows
from smedje.store.database import Database

__all__ = ["server"]

TINY = "tiny-random"


@dataclass
class Clock:
    """The server's time, which a test moves; the real time at first unless told otherwise."""

    at: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.at


def install_tiny_model(home: Path, name: str = TINY) -> Path:
    """A random two-layer model with a byte tokenizer and 512 positions, installed like any other."""
    folder = model_folder(home, name)
    write_tiny_llama(folder, seed=3)
    write_manifest(folder, name=name, source="generated")
    return folder


def chat_lines(count: int, *, text: str = "hello") -> bytes:
    """A valid training file of `count` different examples."""
    rows = (
        {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"{text} {n}"}]}
        for n in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_context(home: Path) -> Context:
    """A fresh state folder with its database and objects, and the tiny base model."""
    database = Database(f"sqlite:///{home / 'smedje.db'}")
    database.migrate()
    install_tiny_model(home)
    return Context(database=database, objects=open_objects((home / "objects").as_uri()), home=home)


def make_project(ctx: Context, name: str) -> tuple[Project, str]:
    """A further hub with one project of its own, and the secret of an owner key."""
    hub = Hub(id=new_id(HUB), name=f"hub-{name}", display_name=name, location="local", created_at=1)
    project = Project(id=new_id(PROJECT), hub_id=hub.id, name=name, description="", created_at=1)
    with ctx.database.transaction() as tx:
        project_rows.insert_hub(tx, hub)
        project_rows.insert_project(tx, project)
    return project, projects.create_key(ctx, project, name="owner")[1]


def make_app(ctx: Context) -> FastAPI:
    """The API over this context with its own engine pool."""
    settings = EngineSettings(
        objects_url=ctx.objects.url,
        cache=ctx.home / "cache",
        logs=ctx.home / "logs",
        threads=1,
        env=worker_environment(os.environ, objects_url=ctx.objects.url),
    )
    pool = EnginePool(LocalExecutor(), settings)
    chat = Chat(ctx, pool)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await chat.close()
            await pool.close()

    return create_app(Services(context=ctx, chat=chat), running=running)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application behind a real socket; its base URL. Connections made before it is ready wait in the backlog."""
    logging.getLogger("smedje").setLevel(logging.CRITICAL)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # asyncio sets this only for sockets that it made itself; without it each answer waits 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(
            uvicorn.Config(app, http=Connection, log_level="warning", access_log=False, lifespan="on")
        )
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server: where it is, the default project's owner key, and its context for looking behind the API."""

    url: str
    key: str
    ctx: Context
    project: Project
    clients: dict[str, OpenAI] = field(default_factory=dict)

    def client(self, key: str | None = None) -> OpenAI:
        """The official client, which never retries here, so that a test sees the first answer."""
        secret = key or self.key
        if secret not in self.clients:
            self.clients[secret] = OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0)
        return self.clients[secret]

    def http(self, key: str | None = None) -> httpx2.Client:
        """A plain client with a key."""
        return httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {key or self.key}"}, timeout=60)

    def post(self, path: str, body: object, *, key: str | None = None) -> httpx2.Response:
        """Send JSON."""
        with self.http(key) as http:
            return http.post(path, json=body)

    def get(self, path: str, *, key: str | None = None) -> httpx2.Response:
        """Ask for a path."""
        with self.http(key) as http:
            return http.get(path)

    def upload(self, content: bytes, *, key: str | None = None, name: str = "train.jsonl") -> str:
        """Upload training data; the file's id."""
        return self.client(key).files.create(file=(name, content), purpose="fine-tune").id


@contextmanager
def live_server(ctx: Context) -> Iterator[Server]:
    """A server on this context, with the defaults of a first run; closed with its clients and its database."""
    made = projects.ensure_defaults(ctx, None, ctx.location)
    assert made.new_secret is not None
    with serving(make_app(ctx)) as url:
        found = Server(url=url, key=made.new_secret, ctx=ctx, project=made.project)
        yield found
        for client in found.clients.values():
            client.close()
    ctx.database.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a module."""
    with live_server(make_context(tmp_path_factory.mktemp("home"))) as found:
        yield found
