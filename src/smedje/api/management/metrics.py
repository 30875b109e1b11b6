"""Metrics for monitoring: the whole server's, so a key needs usage.read for the whole server."""

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from smedje.api.auth import CanReadUsage
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Chatting
from smedje.domain.projects import Permission
from smedje.services.access import demand
from smedje.services.health import jobs_by_status
from smedje.services.meters import CONTENT_TYPE

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response)
async def metrics(caller: CanReadUsage, services: Chatting, request: Request) -> Response:
    """Requests, waits, tokens, engines and jobs in Prometheus' text format."""
    refuse_unknown_query(request, frozenset())
    demand(caller, Permission.USAGE_READ)
    jobs = await run_in_threadpool(jobs_by_status, services.context)
    page = services.chat.meters.page(await services.chat.engines(), jobs)
    return Response(page, media_type=CONTENT_TYPE)
