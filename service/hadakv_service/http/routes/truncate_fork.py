"""Truncate sessions, and fork them."""

from collections.abc import Callable, Hashable, Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import Encoded, Stream
from hadakv_service.http.app_state import app_state, session_key
from hadakv_service.http.content import is_json, metadata_response
from hadakv_service.http.routes.sessions import describe
from hadakv_service.sessions.session_id import check_session_id
from hadakv_service.storage.session_store import Key
from hadakv_service.wire import messages, responses, serialization

router = APIRouter()

Beside = frozenset[Hashable]


@router.post("/sessions/{id}/truncate", response_model=None)
async def truncate(request: Request) -> Response:
    """Delete every token from a position on, in all layers."""
    key = session_key(request)
    service = app_state(request)
    length = (await _body(request, messages.TruncateBody)).length

    def work(beside: Beside) -> responses.SessionInfo:
        session = service.store.get(key).session.truncate(length, service.backend)
        return describe(key[1], service.store.commit(key, session, keep=beside))

    return metadata_response(request, await service.device.run(_ChangeJob(key, work)))


@router.post("/sessions/{id}/fork", status_code=201, response_model=None)
async def fork(request: Request) -> Response:
    """Create a session from all or the first tokens of another one. Shared tokens are stored once."""
    source = session_key(request)
    service = app_state(request)
    body = await _body(request, messages.ForkBody)
    target = (source[0], check_session_id(body.id))

    def work(beside: Beside) -> responses.SessionInfo:
        session = service.store.get(source).session
        if body.length is not None:
            session = session.truncate(body.length, service.backend)
        return describe(target[1], service.store.fork(source, target, session, beside))

    # Nobody else may make the new session meanwhile; the old one is a value.
    return metadata_response(request, await service.device.run(_ChangeJob(target, work)), 201)


class _ChangeJob:
    """A job that stores without encoding; nothing is evicted for it that is under way beside it."""

    def __init__(self, key: Key, work: Callable[[Beside], responses.SessionInfo]) -> None:
        self.key: Hashable = key
        self._work = work

    def prepare(self, batch: Beside) -> Sequence[Stream]:
        """Nothing to encode."""
        self._beside = batch
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> responses.SessionInfo:  # noqa: ARG002 - nothing was encoded
        """Do the work."""
        return self._work(self._beside)

    def roll_back(self) -> None:
        """Nothing to undo."""


async def _body(request: Request, kind: type[serialization.Body]) -> serialization.Body:
    json = is_json(request, json_allowed=True)
    async with app_state(request).bodies.read(request) as raw:
        return serialization.decode_body(kind, raw, json=json)
