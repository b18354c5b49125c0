"""Append to a session and read back from it."""

import re
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import Backend, CodecSpec, Encoded
from hadakv_service import answers, wire
from hadakv_service.append import Append, Appended, AppendJob, on_host
from hadakv_service.context import Context, context, session_key
from hadakv_service.errors import AnswerTooLarge, InvalidRequest
from hadakv_service.media import MsgpackResponse, is_json
from hadakv_service.session import Session
from hadakv_service.store import Key

router = APIRouter()

Form = Literal["packed", "float16", "float32", "bfloat16", "rotated"]


async def append(request: Request) -> Response:
    """POST /sessions/{id}/kv: encode K and V and keep them at the end of the session.

    A plain Starlette endpoint: the hot path is spared FastAPI's parameter machinery.
    """
    key = session_key(request)
    is_json(request)
    service = context(request)
    async with service.bodies.read(request) as body:
        appended = await store(service, key, body)
    minimal = "return=minimal" in request.headers.get("prefer", "").replace(" ", "").lower()
    return MsgpackResponse(answer(key[1], appended, minimal=minimal), 201 if appended.created else 200)


async def store(service: Context, key: Key, body: wire.Buffer) -> Appended:
    """Do what an append's body asks for; the body must last until then."""
    checked = Append.from_body(wire.decode_body(wire.AppendBody, body))
    job = AppendJob(key, checked, service.store, service.backend, service.new_session)
    return await service.device.run(job)


def answer(session: str, appended: Appended, *, minimal: bool) -> answers.Appended:
    """What an append answers."""
    told: answers.Appended = {
        "session": session,
        "position": appended.position,
        "tokens": appended.tokens,
        "length": appended.position + appended.tokens,
    }
    if not minimal:
        k_spec, v_spec = appended.specs
        told["k"] = wire.stream(appended.k, k_spec)
        told["v"] = wire.stream(appended.v, v_spec)
    return told


@router.get("/sessions/{id}/kv", response_class=MsgpackResponse, response_model=None)
async def read(
    request: Request,
    start: Annotated[int | None, Query(ge=0)] = None,
    stop: Annotated[int | None, Query(ge=0)] = None,
    layers: Annotated[str | None, Query(examples=["0:4"])] = None,
    form: Form = "packed",
    layout: Literal["linear", "ring"] = "linear",
) -> Response:
    """Read back a range of tokens, packed or decoded; or all of a window, in the order of a ring buffer."""
    key = session_key(request)
    service = context(request)
    chosen = _layer_range(layers)
    if layout == "ring" and (start, stop) != (None, None):
        raise InvalidRequest([("layout", "a ring is the whole window: it takes no start or stop")])

    def work() -> answers.Range:
        session = service.store.get(key).session
        service.store.touch(key)
        if layout == "ring" and session.window is None:
            raise InvalidRequest([("layout", "the session has no window to make a ring of")])
        return _read(service, session, (start, stop, chosen), form, session.window if layout == "ring" else None)

    return MsgpackResponse(await service.device.call(work, key))


def _layer_range(layers: str | None) -> tuple[int, int] | None:
    if layers is None:
        return None
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", layers, re.ASCII)
    if match is None:
        raise InvalidRequest([("layers", "must be first:last+1, for example 0:4")])
    return int(match[1]), int(match[2])


def _read(
    service: Context,
    session: Session,
    wanted: tuple[int | None, int | None, tuple[int, int] | None],
    form: Form,
    ring: int | None,
) -> answers.Range:
    """The answer to a read, as a ring of so many rows or in order: runs on the device's thread."""
    a, b, start, stop = session.range(*wanted)
    _, length, _ = session.span(a, b - a) if a < b else (0, 0, 0)
    answer: answers.Range = {"start": start, "stop": stop, "length": length, "k": None, "v": None}
    if not session.has_shape:
        return answer
    rows = (b - a) * (session.kv_heads or 0) * (ring or stop - start)
    check_answer(service, "layout" if ring else "stop", rows * sum(row_nbytes(spec, form) for spec in session.specs))
    page = session.read(a, b, start, stop, service.backend)
    streams = zip("kv", (page.k, page.v), session.specs, strict=True)
    parts = {name: _in_form(service.backend, stream, spec, form) for name, stream, spec in streams}
    if ring:
        parts = {name: {key: _ring(array, start, ring) for key, array in part.items()} for name, part in parts.items()}
    told = {name: {key: wire.tensor(x) for key, x in part.items()} for name, part in parts.items()}
    return {**answer, "k": told["k"], "v": told["v"]}


def _ring(array: NDArray[Any], start: int, rows: int) -> NDArray[Any]:
    """Tokens `[layers, kv_heads, tokens, ...]` from position `start` on, each in row `position % rows`, others zero."""
    layers, heads, tokens, width = array.shape
    ring = np.zeros((layers, heads, rows, width), array.dtype)
    ring[:, :, (start + np.arange(tokens)) % rows] = array
    return ring


def row_nbytes(spec: CodecSpec, form: str) -> int:
    """Bytes one vector takes in an answer."""
    return spec.nbytes if form == "packed" else spec.head_dim * (2 if form in ("float16", "bfloat16") else 4)


def check_answer(service: Context, field: str, nbytes: int) -> None:
    """Refuse an answer larger than any request could be, before its memory is allocated.

    Raises:
        AnswerTooLarge: it is.
    """
    limit = int(service.settings.max_body)
    if nbytes > limit:
        raise AnswerTooLarge(field, nbytes, limit)


def _in_form(backend: Backend, stream: Encoded, spec: CodecSpec, form: Form) -> dict[str, NDArray[Any]]:
    if form == "packed":
        return wire.stream_arrays(on_host(stream, backend), spec)
    dtype = "float32" if form == "rotated" else form
    return {"values": backend.decode(stream, spec, dtype, inverse=form != "rotated")}
