"""The server's own program: what `smedje serve` becomes once its options are checked and its port is held.

Knows when the server is ready and how it ends; loads nothing of the command line, so that the server is that much
smaller. Started by `smedje serve` alone: `python -m smedje.cli.server_process OPTIONS`.
"""

import asyncio
import json
import socket
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from smedje.cli import exits
from smedje.errors import SmedjeError

if TYPE_CHECKING:
    import uvicorn


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What the command line hands on. listener: number of the open, listening socket. hosts: as `build_app` has it."""

    listener: int
    url: str
    hosts: tuple[str, ...]
    as_json: bool

    def to_json(self) -> str:
        """As one word of a command line."""
        return json.dumps(asdict(self))


def main(words: list[str]) -> int:
    """Serve until told to stop; the exit code. Failures are told as every command tells them."""
    told = json.loads(words[0])
    options = ServerOptions(**{**told, "hosts": tuple(told["hosts"])})
    try:
        with socket.socket(fileno=options.listener) as listener:
            run_server(listener, options)
    except SmedjeError as error:
        print("\n".join(exits.error_lines(error)), file=sys.stderr)
        return exits.exit_code(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exits.INTERRUPTED
    except Exception as error:
        return exits.unexpected(error)
    return exits.OK


def run_server(listener: socket.socket, options: ServerOptions) -> None:
    """Serve on a listening socket until a signal ends it. Raises SmedjeError for settings that cannot work."""
    import uvicorn

    from smedje.api.connection import Connection
    from smedje.settings import load_settings
    from smedje.wiring import build_app

    # No route speaks WebSocket, so what would read it is not loaded.
    config = uvicorn.Config(
        build_app(load_settings(), hosts=options.hosts),
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    asyncio.run(_serve(uvicorn.Server(config), listener, options))


async def _serve(server: "uvicorn.Server", listener: socket.socket, options: ServerOptions) -> None:
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if server.started:
        print(json.dumps({"url": options.url}) if options.as_json else f"smedje is ready at {options.url}", flush=True)
    await running


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
