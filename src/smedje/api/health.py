"""Is the server there, and can it work? For supervisors and probes; tells nothing else, and needs no key."""

from fastapi import APIRouter
from pydantic import BaseModel

from smedje.api.state import Using
from smedje.services import health as service

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """`ok` says it all."""

    status: str = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz")
def readyz(ctx: Using) -> Health:
    """Database and object storage answer; 503 when one does not."""
    service.check_ready(ctx)
    return Health()
