"""Metrics for Prometheus."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from hadakv_service.errors import Unauthorized
from hadakv_service.http.app_state import app_state
from hadakv_service.http.strict_route import StrictRoute

router = APIRouter(route_class=StrictRoute)


@router.get(
    "/metrics",
    response_model=None,
    response_class=PlainTextResponse,
    responses={401: {"description": f"{Unauthorized.title} (`{Unauthorized.slug}`)"}},
)
async def metrics(request: Request) -> Response:
    """Metrics of requests, the device, stored sessions and the process, for Prometheus."""
    page, content_type = app_state(request).metrics.render(request.headers.get("accept", ""))
    return Response(page, headers={"content-type": content_type})
