"""Lists on the wire: one page, its first and last id, and whether more follows. Knows nothing of what is listed."""

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel

from smedje.errors import InvalidRequest

# Azure's clients send it with every request; there is one version here.
API_VERSION = "api-version"

T = TypeVar("T")
V = TypeVar("V")


class Page(BaseModel, Generic[T]):
    """OpenAI's list object. The next page is asked for with `after=<last_id>`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page(found: Sequence[V], limit: int, convert: Callable[[V], T], identify: Callable[[V], str]) -> Page[T]:
    """A page of at most `limit` of `found`, which was asked for with one more than `limit`."""
    kept = found[:limit]
    return Page[T](
        data=[convert(one) for one in kept],
        first_id=identify(kept[0]) if kept else None,
        last_id=identify(kept[-1]) if kept else None,
        has_more=len(found) > limit,
    )


def refuse_unknown_query(request: Request, known: frozenset[str], *, prefix: str | None = None) -> None:
    """Raises InvalidRequest for a query parameter outside `known` that does not begin with `prefix`."""
    for name in request.query_params:
        if name not in (*known, API_VERSION) and not (prefix is not None and name.startswith(prefix)):
            listed = ", ".join(sorted(known)) or "none"
            raise InvalidRequest(
                f"The query parameter {name[:100]!r} is not known here. Known ones: {listed}.",
                code="unknown_field",
                param=name[:100],
            )
