"""Cut sessions short, and make new ones of what others hold."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hadakv_service import wire
from hadakv_service.context import check_session_id, context, session_key
from hadakv_service.media import is_json, metadata
from hadakv_service.routes.sessions import describe

router = APIRouter()


@router.post("/sessions/{id}/truncate", response_model=None)
async def truncate(request: Request) -> Response:
    """Forget every token from a position on, in all layers."""
    key = session_key(request)
    service = context(request)
    length = (await _body(request, wire.TruncateBody)).length

    def work() -> dict[str, Any]:
        session = service.store.get(key).session.truncate(length, service.backend)
        return describe(key[1], service.store.put(key, session))

    return metadata(request, await service.device.call(work, key))


@router.post("/sessions/{id}/fork", status_code=201, response_model=None)
async def fork(request: Request) -> Response:
    """Make a session of another's tokens, all or the first; what both hold is stored once."""
    source = session_key(request)
    service = context(request)
    body = await _body(request, wire.ForkBody)
    target = (source[0], check_session_id(body.id))

    def work() -> dict[str, Any]:
        session = service.store.get(source).session
        if body.length is not None:
            session = session.truncate(body.length, service.backend)
        return describe(target[1], service.store.fork(source, target, session))

    # Nobody else may make the new session meanwhile; the old one is a value.
    return metadata(request, await service.device.call(work, target), 201)


async def _body(request: Request, kind: type[wire.Body]) -> wire.Body:
    json = is_json(request, json_allowed=True)
    async with context(request).bodies.read(request) as raw:
        return wire.decode_body(kind, raw, json=json)
