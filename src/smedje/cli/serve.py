"""`smedje serve`: the server, on this machine's own address unless told otherwise.

Knows sockets and when the server is ready; knows nothing of routes.
"""

import errno
import os
import socket
import sys
from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, note
from smedje.cli.server_process import ServerOptions, run_server
from smedje.errors import Unavailable

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

    if not is_loopback(host):
        if not allow_remote:
            raise typer.BadParameter(
                f"{host} can be reached from other machines, and keys and data would cross the network unencrypted. "
                "Put a TLS proxy in front of 127.0.0.1, or pass --allow-remote if this network is trusted.",
                param_hint="--host",
            )
        note(f"warning: {host} can be reached from other machines; keys and data cross the network unencrypted")
    allow_open_files()
    with listen(host, port) as listener:
        # Who may listen beyond this machine has no list of names unless one was given.
        hosts = tuple(allow_host or (["*"] if allow_remote else []))
        options = ServerOptions(listener=listener.fileno(), url=url_of(listener), hosts=hosts, as_json=as_json)
        if sys.platform == "win32":
            # There a program cannot become another one.
            run_server(listener, options)
        else:
            _become_server(listener, options)


def _become_server(listener: socket.socket, options: ServerOptions) -> None:
    """Go on as a program that holds nothing of the command line, under the same process number. Never returns."""
    listener.set_inheritable(True)
    # One heap for all threads: with one each, a server that takes a gigabyte in holds 6 MB more.
    environ = {"MALLOC_ARENA_MAX": "1", **os.environ}
    os.execve(sys.executable, [sys.executable, "-m", "smedje.cli.server_process", options.to_json()], environ)


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
