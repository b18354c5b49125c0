"""Create, look at, list and delete sessions."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import HEAD_DIMS
from hadakv_service.errors import InvalidRequest, SessionNotFound
from hadakv_service.http.app_state import app_state, session_key, tenant
from hadakv_service.http.content import check_uncompressed, is_json, metadata_response
from hadakv_service.operations.create import CreateOperation
from hadakv_service.operations.describe import describe
from hadakv_service.sessions.session import MAX_LAYERS
from hadakv_service.wire import messages, responses, serialization

router = APIRouter()


@router.put("/sessions/{id}", response_model=None)
async def create(request: Request) -> Response:
    """Create a session; the same again changes nothing, another shape is refused."""
    key = session_key(request)
    service = app_state(request)
    job = CreateOperation(key, await _asked(request), service.store, service.new_session)
    answer = await service.device.run(job)
    return metadata_response(request, answer, 201 if job.created else 200)


async def _asked(request: Request) -> dict[str, Any]:
    """The fields a PUT gives, checked by themselves."""
    check_uncompressed(request)
    json = "content-type" in request.headers and is_json(request, json_allowed=True)
    async with app_state(request).bodies.read(request) as raw:
        body = serialization.decode_body(messages.SessionBody, raw, json=json) if raw else messages.SessionBody()
    if body.head_dim is not None and body.head_dim not in HEAD_DIMS:
        raise InvalidRequest([("head_dim", f"must be one of {HEAD_DIMS}, not {body.head_dim}")])
    if body.durability not in (None, "memory") and not app_state(request).store.disk.budget:
        raise InvalidRequest([("durability", f"cannot be {body.durability}: this service keeps nothing on disk")])
    if body.layers is not None and body.layers > MAX_LAYERS:
        raise InvalidRequest([("layers", f"must be at most {MAX_LAYERS}, not {body.layers}")])
    asked = {name: getattr(body, name) for name in body.__struct_fields__ if name != "codec"}
    asked["codecs"] = body.codec.codecs() if body.codec else None
    return {name: value for name, value in asked.items() if value is not None}


@router.get("/sessions/{id}", response_model=None)
async def show(request: Request) -> Response:
    """One session: codec, shape, lengths, bytes, age."""
    key = session_key(request)
    store = app_state(request).store
    return metadata_response(request, await _on_device(request, lambda: describe(key[1], store.get(key))))


@router.get("/sessions", response_model=None)
async def list_(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: str = "",
    prefix: str = "",
) -> Response:
    """The caller's sessions in order of id, `limit` at a time; `next` is the `after` of the next page."""
    mine = tenant(request)
    store = app_state(request).store

    def work() -> responses.SessionList:
        found, last = store.list_sessions(mine, prefix, after, limit)
        return {"sessions": [describe(id_, entry) for id_, entry in found], "next": last}

    return metadata_response(request, await _on_device(request, work))


@router.delete("/sessions/{id}", status_code=204, response_model=None)
async def delete(request: Request) -> Response:
    """Forget a session and free its pages."""
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
