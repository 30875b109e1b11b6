"""What the routes work with. One value, made by `wiring`, found through the application that a request came to."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from smedje.services.chat import Chat
from smedje.services.context import Context

if TYPE_CHECKING:
    from smedje.services.oidc import Provider


@dataclass(frozen=True, kw_only=True)
class Services:
    """The use cases behind the API. context: for the synchronous ones. chat: for generating text.

    provider: the identity provider by which people may sign in. public_url: where browsers reach this server; empty
    for wherever they say they do.
    """

    context: Context
    chat: Chat
    provider: "Provider | None" = None
    public_url: str = ""


def services(request: Request) -> Services:
    """The services of the application that took this request, acting for its caller."""
    found = request.app.state.services
    assert isinstance(found, Services)
    actor = getattr(request.state, "actor", None)
    if actor is None:
        return found
    notices = request.scope.setdefault("smedje.notices", [])
    return replace(found, context=replace(found.context, actor=actor, notices=notices))


def context(request: Request) -> Context:
    """The shared resources of the application that took this request."""
    return services(request).context


Using = Annotated[Context, Depends(context)]
Chatting = Annotated[Services, Depends(services)]
