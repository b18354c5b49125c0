"""Append to a session and read back from it."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from hadakv_service.errors import InvalidRequest
from hadakv_service.http.app_state import AppState, app_state, session_key
from hadakv_service.http.content import MsgpackResponse, is_json
from hadakv_service.operations.append import AppendOperation, AppendOutcome, AppendRequest
from hadakv_service.operations.read import ReadForm, ReadOperation, ReadRequest
from hadakv_service.storage.session_store import Key
from hadakv_service.wire import messages, responses, serialization

router = APIRouter()


async def append(request: Request) -> Response:
    """POST /sessions/{id}/kv: encode K and V and keep them at the end of the session.

    A plain Starlette endpoint: the hot path is spared FastAPI's parameter machinery.
    """
    key = session_key(request)
    is_json(request)
    service = app_state(request)
    async with service.bodies.read(request) as body:
        appended = await store(service, key, body)
    minimal = "return=minimal" in request.headers.get("prefer", "").replace(" ", "").lower()
    return MsgpackResponse(answer(key[1], appended, minimal=minimal), 201 if appended.created else 200)


async def store(service: AppState, key: Key, body: serialization.Buffer) -> AppendOutcome:
    """Do what an append's body asks for; the body must last until then."""
    checked = AppendRequest.from_body(serialization.decode_body(messages.AppendBody, body))
    job = AppendOperation(key, checked, service.store, service.backend, service.new_session)
    appended = await service.device.run(job)
    service.counters.appended += job.added_tokens
    return appended


def answer(session: str, appended: AppendOutcome, *, minimal: bool) -> responses.StoredAppend:
    """What an append answers."""
    told: responses.StoredAppend = {
        "session": session,
        "position": appended.position,
        "tokens": appended.tokens,
        "length": appended.position + appended.tokens,
    }
    if not minimal:
        k_spec, v_spec = appended.specs
        told["k"] = serialization.stream(appended.k, k_spec)
        told["v"] = serialization.stream(appended.v, v_spec)
    return told


@router.get("/sessions/{id}/kv", response_class=MsgpackResponse, response_model=None)
async def read(
    request: Request,
    start: Annotated[int | None, Query(ge=0)] = None,
    stop: Annotated[int | None, Query(ge=0)] = None,
    layers: Annotated[str | None, Query(examples=["0:4"])] = None,
    form: ReadForm = "packed",
    layout: Literal["linear", "ring"] = "linear",
) -> Response:
    """Read back a range of tokens, packed or decoded; or all of a window, in the order of a ring buffer."""
    key = session_key(request)
    service = app_state(request)
    chosen = _layer_range(layers)
    if layout == "ring" and (start, stop) != (None, None):
        raise InvalidRequest([("layout", "a ring is the whole window: it takes no start or stop")])

    wanted = ReadRequest(start, stop, chosen, form, layout == "ring")
    job = ReadOperation(key, wanted, service.store, service.backend, int(service.settings.max_body))
    found = await service.device.run(job)
    service.counters.read += found["stop"] - found["start"]
    return MsgpackResponse(found)


def _layer_range(layers: str | None) -> tuple[int, int] | None:
    if layers is None:
        return None
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", layers, re.ASCII)
    if match is None:
        raise InvalidRequest([("layers", "must be first:last+1, for example 0:4")])
    return int(match[1]), int(match[2])
