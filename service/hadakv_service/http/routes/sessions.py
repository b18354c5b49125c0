"""Create, show, list and delete sessions."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import HEAD_DIMS
from hadakv_service.errors import InvalidRequest, SessionNotFound
from hadakv_service.http.app_state import app_state, session_key, tenant
from hadakv_service.http.content import check_uncompressed, is_json, metadata_response
from hadakv_service.http.strict_route import DIGITS, StrictRoute
from hadakv_service.operations.create import CreateOperation
from hadakv_service.operations.describe import describe
from hadakv_service.sessions.session import MAX_LAYERS
from hadakv_service.wire import messages, responses, serialization

router = APIRouter(route_class=StrictRoute)


@router.put("/sessions/{id}", response_model=None)
async def create(request: Request) -> Response:
    """Create a session. Repeating the request changes nothing; a request with another shape is rejected."""
    key = session_key(request)
    service = app_state(request)
    operation = CreateOperation(key, await _requested_fields(request), service.store, service.new_session)
    info = await service.device.run(operation)
    return metadata_response(request, info, 201 if operation.created else 200)


async def _requested_fields(request: Request) -> dict[str, Any]:
    """Return the fields of a PUT, checked without the session."""
    check_uncompressed(request)
    json = "content-type" in request.headers and is_json(request, json_allowed=True)
    async with app_state(request).bodies.read(request) as raw:
        body = serialization.decode_body(messages.SessionBody, raw, json=json) if raw else messages.SessionBody()
    if body.head_dim is not None and body.head_dim not in HEAD_DIMS:
        raise InvalidRequest([("head_dim", f"must be one of {HEAD_DIMS}, not {body.head_dim}")])
    if body.durability not in (None, "memory") and not app_state(request).store.disk.budget:
        raise InvalidRequest([("durability", f"cannot be {body.durability}: this service has no disk store")])
    if body.layers is not None and body.layers > MAX_LAYERS:
        raise InvalidRequest([("layers", f"must be at most {MAX_LAYERS}, not {body.layers}")])
    fields = {name: getattr(body, name) for name in body.__struct_fields__ if name != "codec"}
    fields["codecs"] = body.codec.codecs() if body.codec else None
    return {name: value for name, value in fields.items() if value is not None}


@router.get("/sessions/{id}", response_model=None)
async def show(request: Request) -> Response:
    """Show one session: codec, shape, lengths, bytes, times."""
    key = session_key(request)
    store = app_state(request).store
    return metadata_response(request, await _on_device(request, lambda: describe(key[1], store.get(key))))


@router.get("/sessions", response_model=None)
async def list_(
    request: Request,
    limit: Annotated[int, DIGITS, Query(ge=1, le=1000)] = 100,
    after: str = "",
    prefix: str = "",
) -> Response:
    """List the caller's sessions in order of id, at most `limit`. `next` is the `after` of the next page."""
    owner = tenant(request)
    store = app_state(request).store

    def work() -> responses.SessionList:
        page, last = store.list_sessions(owner, prefix, after, limit)
        return {"sessions": [describe(id_, record) for id_, record in page], "next": last}

    return metadata_response(request, await _on_device(request, work))


@router.delete("/sessions/{id}", status_code=204, response_model=None)
async def delete(request: Request) -> Response:
    """Delete a session and free its pages."""
    key = session_key(request)
    store = app_state(request).store

    def work() -> None:
        if not store.delete(key):
            raise SessionNotFound(key[1])

    await _on_device(request, work)
    return Response(status_code=204)


async def _on_device(request: Request, work: Callable[[], Any]) -> Any:
    key = session_key(request) if "id" in request.path_params else None
    return await app_state(request).device.call(work, key)
