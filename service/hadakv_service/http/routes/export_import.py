"""Export a session to a safetensors file, and import one."""

from datetime import UTC, datetime
from functools import partial

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from hadakv_service.asgi_extensions import is_disconnected
from hadakv_service.http.app_state import app_state, session_key
from hadakv_service.http.body_stream import BodyStream
from hadakv_service.http.content import OCTETS, check_octet_stream, metadata_response
from hadakv_service.http.sending import CountedStream, prepare_with_share, release_pages
from hadakv_service.http.strict_route import StrictRoute
from hadakv_service.operations.describe import describe
from hadakv_service.operations.files.export_session import Export, ExportAborted
from hadakv_service.storage.pages.held_pages import PageHold

router = APIRouter(route_class=StrictRoute)

# RFC 7234, 5.5: 299 is a persistent warning without a standard meaning.
VERSION_1_WARNING = (
    '299 hadakv "file of version 1: it has no checksum, so damage cannot be found; export the session again"'
)


@router.get("/sessions/{id}/export", response_class=StreamingResponse, response_model=None)
async def export(request: Request) -> Response:
    """Export the session as one safetensors file. Later appends do not change the file while it is sent."""
    key = session_key(request)
    service = app_state(request)

    def prepare() -> Export:
        record = service.store.get(key)
        service.store.touch(key)
        return Export.from_session(
            record.session, service.store.pool, key[1], datetime.fromtimestamp(record.created, UTC)
        )

    def needed_nbytes(file: Export) -> int:
        return 0 if request.method == "HEAD" else max(file.memory_nbytes, 1)

    file, share = await prepare_with_share(service.sending, lambda _: service.device.call(prepare, key), needed_nbytes)
    headers = {"content-disposition": f'attachment; filename="{key[1]}.safetensors"'}
    if request.method == "HEAD":
        return Response(headers={"content-length": str(file.nbytes), **headers}, media_type=OCTETS)
    assert share
    hold = PageHold(service.store.pool.held, list(file.session.all_pages()), watch=True)
    release = partial(release_pages, service.device, hold, share)
    try:
        while await service.device.call(hold.extend):
            pass
        await file.verify(service.device, partial(is_disconnected, request.scope))
    except BaseException as error:
        release()
        if isinstance(error, ExportAborted):
            raise ClientDisconnect from error
        raise
    return CountedStream(file.chunks(service.device), file.nbytes, release, headers, OCTETS)


@router.post("/sessions/{id}/import", status_code=201, response_model=None, name="import")
async def import_(request: Request) -> Response:
    """Create a session from an exported file. The file is imported completely or not at all."""
    key = session_key(request)
    check_octet_stream(request)
    service = app_state(request)
    body = BodyStream(request)
    # --max-body does not apply: only some pages of the file are in memory at a time.
    with service.bodies.import_memory.counter(may_exceed_alone=True) as count:
        imported = await service.importer.run(key, body, body.nbytes, count)
    response = metadata_response(request, describe(key[1], imported.record), 201)
    if not imported.has_digest:
        response.headers["warning"] = VERSION_1_WARNING
    return response
