"""Truncate sessions, and fork them."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hadakv_service.http.app_state import app_state, session_key
from hadakv_service.http.content import is_json, metadata_response
from hadakv_service.http.strict_route import StrictRoute
from hadakv_service.operations.truncate_fork import ForkOperation, TruncateOperation
from hadakv_service.sessions.session_id import check_session_id
from hadakv_service.wire import messages, serialization

router = APIRouter(route_class=StrictRoute)


@router.post("/sessions/{id}/truncate", response_model=None)
async def truncate(request: Request) -> Response:
    """Delete every token from a position on, in all layers."""
    key = session_key(request)
    service = app_state(request)
    length = (await _body(request, messages.TruncateBody)).length
    job = TruncateOperation(key, length, service.store, service.backend)
    return metadata_response(request, await service.device.run(job))


@router.post("/sessions/{id}/fork", status_code=201, response_model=None)
async def fork(request: Request) -> Response:
    """Create a session from all or the first tokens of another one. Shared tokens are stored once."""
    source = session_key(request)
    service = app_state(request)
    body = await _body(request, messages.ForkBody)
    target = (source[0], check_session_id(body.id))
    job = ForkOperation(source, target, body.length, service.store, service.backend)
    return metadata_response(request, await service.device.run(job), 201)


async def _body(request: Request, kind: type[serialization.Body]) -> serialization.Body:
    json = is_json(request, json_allowed=True)
    async with app_state(request).bodies.read(request) as raw:
        return serialization.decode_body(kind, raw, json=json)
