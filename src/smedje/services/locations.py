"""Locations: compute targets by name, what each can train, and whether a hub's location can train what is asked for.

A server speaks for one location, that of its own machine, and says once a minute what it can; servers that share a
database so know of each other. Knows machines from the outside; whether a job's own numbers fit is preflight's work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smedje.domain.projects import Project
from smedje.errors import InvalidRequest
from smedje.services.abilities import abilities
from smedje.services.context import Context
from smedje.store import projects as project_rows
from smedje.store import upkeep as store

SILENT_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Location:
    """A compute target. about: what it said of itself (see `abilities`). alive: whether it has spoken lately."""

    name: str
    about: Mapping[str, Any]
    seen_at: int
    alive: bool


def announce_location(ctx: Context) -> int:
    """Say what this server's location can do."""
    about = abilities(ctx.home)
    with ctx.database.transaction() as tx:
        store.put_location(tx, ctx.location, about, now=ctx.seconds())
    return 1


def list_locations(ctx: Context) -> list[Location]:
    """Every location that ever spoke, by name; this server's own as it is now."""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        told = {name: (about, seen_at) for name, about, seen_at in store.list_locations(tx)}
    told[ctx.location] = (abilities(ctx.home), now)
    return [
        Location(name=name, about=about, seen_at=seen_at, alive=now - seen_at < SILENT_SECONDS)
        for name, (about, seen_at) in sorted(told.items())
    ]


def check_name(ctx: Context, name: str) -> str:
    """`name` itself. Raises InvalidRequest when no server speaks for it."""
    known = [one.name for one in list_locations(ctx)]
    if name not in known:
        raise InvalidRequest(
            f"There is no location {name[:100]!r}. Locations: {', '.join(known)}.",
            code="unknown_location",
            param="location",
        )
    return name


def check_location(ctx: Context, project: Project, base_model: str, method: str) -> None:
    """Raises InvalidRequest, saying why and what can be trained there, unless the project's location can train this."""
    with ctx.database.transaction() as tx:
        hub = project_rows.find_hub(tx, project.hub_id)
    name = ctx.location if hub is None else hub.location
    found = next((one for one in list_locations(ctx) if one.name == name), None)
    if found is None:
        raise InvalidRequest(
            f"The hub of this project is at {name}, for which no server speaks. Use a project in another hub, or start "
            f"a server with SMEDJE_LOCATION={name}.",
            code="unknown_location",
            param="model",
        )
    models = {model["name"]: model for model in found.about["models"]}
    reason = _reason(models.get(base_model), method)
    if reason is not None:
        able = [one for one, model in models.items() if model["installed"] and _reason(model, method) is None]
        raise InvalidRequest(
            f"{base_model} cannot be trained by {method} at {name}, the location of this project's hub: {reason}. "
            f"What can: {', '.join(able) or 'nothing'}.",
            code="location_cannot_train",
            param="model",
        )


def _reason(model: Mapping[str, Any] | None, method: str) -> str | None:
    if model is None or not model["installed"]:
        return "the base model is not installed there"
    if method not in model["methods"]:
        return f"its methods are {', '.join(model['methods'])}"
    reason = model["reason"]
    return None if reason is None else str(reason)
