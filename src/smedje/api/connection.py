"""One client's HTTP connection, as uvicorn speaks it, and one thing more: whether what was just sent was written.

Knows uvicorn's connection; knows nothing of requests and answers. uvicorn drops what is sent to a client that has gone
without a word, some turns of the event loop before anybody is told, so that whoever counts could not count right.
"""

import asyncio

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from smedje.api.sse import CLOSING


class Connection(H11Protocol):
    """uvicorn's connection; `scope["extensions"][CLOSING]()` is true once the client's end or a failed write was seen.

    A client that closes only its sending half has gone, as for uvicorn itself.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        answer = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), CLOSING: transport.is_closing}
            await answer(scope, receive, send)

        self.app = app
