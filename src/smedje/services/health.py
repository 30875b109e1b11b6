"""Whether the parts that every request needs are there."""

from smedje.services.context import Context

PROBE = "health/probe"


def check_ready(ctx: Context) -> None:
    """Raises Unavailable when the database or object storage does not answer."""
    ctx.database.ping()
    ctx.objects.exists(PROBE)
