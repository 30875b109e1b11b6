"""`smedje serve`: the server, on this machine's own address unless told otherwise.

Knows sockets and when the server is ready; knows nothing of routes.
"""

import asyncio
import errno
import socket
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from smedje.cli.output import JsonFlag, note, print_json_line, say
from smedje.errors import Unavailable

if TYPE_CHECKING:
    import uvicorn

DEFAULT_PORT = 8321
# An answer under way holds two: the client's connection and the engine's. Systems often allow 1024 unless asked.
OPEN_FILES = 65_536


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = DEFAULT_PORT,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen on an address that other machines can reach.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A host name of this server, as behind a proxy; repeatable."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start the server; one line with its URL says that it is ready. Ctrl-C stops it."""
    from smedje.cli.client import is_loopback
    from smedje.settings import load_settings

    if not is_loopback(host):
        if not allow_remote:
            raise typer.BadParameter(
                f"{host} can be reached from other machines, and keys and data would cross the network unencrypted. "
                "Put a TLS proxy in front of 127.0.0.1, or pass --allow-remote if this network is trusted.",
                param_hint="--host",
            )
        note(f"warning: {host} can be reached from other machines; keys and data cross the network unencrypted")
    settings = load_settings()
    allow_open_files()
    with listen(host, port) as listener:
        import uvicorn

        from smedje.wiring import build_app

        # Who may listen beyond this machine has no list of names unless one was given.
        hosts = allow_host or (["*"] if allow_remote else [])
        config = uvicorn.Config(
            build_app(settings, hosts=hosts), log_level="warning", access_log=False, server_header=False
        )
        server = uvicorn.Server(config)
        asyncio.run(_serve(server, listener, as_json=as_json))


def allow_open_files() -> None:
    """Raise this process's limit on open files, and that of the engines it starts, as far as the system lets it."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Unavailable when the port is taken, BadParameter when the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512)
        # Accepted connections inherit it; without it every small answer waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as problem:
        if problem.errno in (errno.EADDRINUSE, errno.EACCES):
            raise Unavailable(f"Port {port} on {host} cannot be had: {problem.strerror}.", code="port_in_use") from None
        raise typer.BadParameter(f"this machine cannot listen on {host}: {problem}.", param_hint="--host") from None


def url_of(listener: socket.socket) -> str:
    """The URL under which a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(server: "uvicorn.Server", listener: socket.socket, *, as_json: bool) -> None:
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if server.started:
        url = url_of(listener)
        if as_json:
            print_json_line({"url": url})
        else:
            say(f"smedje is ready at {url}")
    await running
