"""Whether the parts that every request needs are there, and how much work there is."""

from smedje.services.context import Context
from smedje.store import jobs as job_rows

PROBE = "health/probe"


def check_ready(ctx: Context) -> None:
    """Raises Unavailable when the database or object storage does not answer."""
    ctx.database.ping()
    ctx.objects.exists(PROBE)


def jobs_by_status(ctx: Context) -> dict[str, int]:
    """How many jobs of all projects there are in each state."""
    with ctx.database.transaction() as tx:
        return job_rows.count_by_status(tx)
