"""Read the tokens of a session."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from hadakv_service.errors import InvalidRequest
from hadakv_service.http.app_state import app_state, session_key
from hadakv_service.http.content import MsgpackResponse
from hadakv_service.http.sending import (
    WHOLE_NBYTES,
    CountedResponse,
    DeferredResponse,
    prepare_with_share,
    released_on_error,
)
from hadakv_service.http.strict_route import DIGITS, StrictRoute
from hadakv_service.operations.read import ReadOperation, ReadRequest, ReadResult
from hadakv_service.sessions.range_tensor import ReadForm
from hadakv_service.wire.sending_budget import Share
from hadakv_service.wire.serialization import LARGE_TENSOR_NBYTES

router = APIRouter(route_class=StrictRoute)

# A client that reads a session in several ranges compares it: ranges of one revision fit together.
REVISION_HEADER = "hadakv-revision"


@router.get("/sessions/{id}/kv", response_class=MsgpackResponse, response_model=None)
async def read(
    request: Request,
    start: Annotated[int | None, DIGITS, Query(ge=0)] = None,
    stop: Annotated[int | None, DIGITS, Query(ge=0)] = None,
    layers: Annotated[str | None, Query(examples=["0:1"])] = None,
    form: ReadForm = "packed",
    layout: Literal["linear", "ring"] = "linear",
) -> Response:
    """Read a range of tokens: packed, decoded, or the norms alone.

    With `layout=ring`, read the whole window in ring buffer order.
    """
    key = session_key(request)
    service = app_state(request)
    layer_range = _layer_range(layers)
    if layout == "ring" and (start, stop) != (None, None):
        raise InvalidRequest([("layout", "ring reads the whole window: remove start and stop")])

    read_request = ReadRequest(start, stop, layer_range, form, layout == "ring")

    async def prepare(share: Share | None) -> tuple[ReadOperation, ReadResult]:
        operation = ReadOperation(
            key,
            read_request,
            service.store,
            service.backend,
            limit=int(service.settings.max_body),
            whole_nbytes=WHOLE_NBYTES if share else LARGE_TENSOR_NBYTES,
        )
        content, pages = await service.device.run(operation)
        # Nothing is made of the pages for a HEAD request, so they need not be loaded.
        return operation, ReadResult(content, [] if pages and request.method == "HEAD" else pages)

    def needed_nbytes(prepared: tuple[ReadOperation, ReadResult]) -> int:
        pages = prepared[1].pages
        return 0 if pages is None else DeferredResponse.needed_nbytes(pages)

    # A small response is made at once, so it has its share before its size is known.
    first = service.sending.try_acquire(WHOLE_NBYTES)
    (operation, (content, pages)), share = await prepare_with_share(service.sending, prepare, needed_nbytes, first)
    service.counters.read += 0 if request.method == "HEAD" else content["stop"] - content["start"]
    headers = {REVISION_HEADER: f"{operation.revision:016x}"}
    if pages is None:
        with released_on_error(share):
            return CountedResponse(content, share, headers)
    assert share
    held = service.store.pool.held
    response = await DeferredResponse.open(request.scope, content, pages, held, service.device, share)
    response.headers.update(headers)
    return response


def _layer_range(layers: str | None) -> tuple[int, int] | None:
    if layers is None:
        return None
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", layers, re.ASCII)
    if match is None:
        raise InvalidRequest([("layers", "must be start:stop without stop, for example 0:4 for layers 0 to 3")])
    return int(match[1]), int(match[2])
