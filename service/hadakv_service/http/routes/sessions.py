"""Create, show, list and delete sessions."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import HEAD_DIMS, Encoded, Stream
from hadakv_service.errors import InvalidRequest, SessionExists, SessionNotFound
from hadakv_service.http.app_state import app_state, session_key, tenant
from hadakv_service.http.content import check_uncompressed, is_json, metadata_response
from hadakv_service.sessions.session import MAX_LAYERS, Session
from hadakv_service.storage.session_store import Key, SessionRecord, SessionStore
from hadakv_service.wire import messages, responses, serialization

router = APIRouter()


@router.put("/sessions/{id}", response_model=None)
async def create(request: Request) -> Response:
    """Create a session. Repeating the request changes nothing; a request with another shape is rejected."""
    key = session_key(request)
    service = app_state(request)
    operation = CreateOperation(key, await _requested_fields(request), service.store, service.new_session)
    info = await service.device.run(operation)
    return metadata_response(request, info, 201 if operation.created else 200)


class CreateOperation:
    """Makes a session as a job of the device, or takes on what was left open.

    Attributes:
        created: whether there was none, once it began.
    """

    def __init__(self, key: Key, asked: dict[str, Any], store: SessionStore, new: Session) -> None:
        self.key: Hashable = key
        self._key = key
        self._asked = asked
        self._store = store
        self._new = new
        self._reserved = 0

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Check against what there is, and reserve the bytes; there is nothing to encode."""
        entry = self._store.find(self._key)
        self.created = entry is None
        old = entry.session if entry else self._new
        self._session = _agreed(old, self._asked, new=self.created)
        self._reserved = self._store.reserve_growth(self._key, self._session, batch)
        self._batch = batch
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> responses.SessionInfo:  # noqa: ARG002 - nothing was encoded
        """Store the session and describe it."""
        entry = self._store.commit(self._key, self._session, self._reserved, self._batch)
        self._reserved = 0
        return describe(self._key[1], entry)

    def roll_back(self) -> None:
        """Give the reserved bytes back."""
        self._store.release(self._reserved)
        self._reserved = 0


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


def _agreed(old: Session, asked: dict[str, Any], *, new: bool) -> Session:
    """The session with what is asked for taken on, where that is still open.

    Raises:
        SessionExists: something asked for is decided otherwise.
    """
    open_fields = {name for name in ("codecs", "layers", "kv_heads", "head_dim") if getattr(old, name) is None}
    for name, value in asked.items():
        if not (new or name in open_fields or getattr(old, name) == value):
            field = "codec" if name == "codecs" else name
            raise SessionExists(f"The session exists with another value of {field}.", field=field)
    if asked.get("layers", MAX_LAYERS) < old.stored_layers:
        raise SessionExists(f"The session has {old.stored_layers} layers already.", field="layers")
    return replace(old, **asked)


@router.get("/sessions/{id}", response_model=None)
async def show(request: Request) -> Response:
    """Show one session: codec, shape, lengths, bytes, times."""
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


def describe(session_id: str, record: SessionRecord) -> responses.SessionInfo:
    """Return the description of a session that clients get."""
    session = record.session
    spans = list(session.spans())
    codecs = session.codecs
    return {
        "session": session_id,
        "codec": {"k": codecs[0].to_mapping(), "v": codecs[1].to_mapping()} if codecs else None,
        "kv_heads": session.kv_heads,
        "head_dim": session.head_dim,
        "declared_layers": session.layers,
        "layers": [{"layer": layer, "start": start, "length": length} for layer, start, length in spans],
        "length": min((length for _, _, length in spans), default=0),
        "nbytes": session.nbytes,
        "raw_nbytes": session.raw_nbytes,
        "tier": _tier(record),
        "durability": session.durability,
        "window": session.window,
        "ttl_seconds": session.ttl_seconds,
        "created": _rfc3339(record.created),
        "last_used": _rfc3339(record.last_used),
        "expires": None if record.expires is None else _rfc3339(record.expires),
    }


def _tier(record: SessionRecord) -> Literal["memory", "mixed", "disk"]:
    """Return the tiers that hold the session's tokens."""
    pages = list(record.session.all_pages())
    resident = sum(page.is_resident for page in pages)
    if resident == len(pages) and (pages or not record.session.rows):
        return "memory"
    return "mixed" if resident else "disk"


def _rfc3339(unix_seconds: float) -> str:
    return str(msgspec.to_builtins(datetime.fromtimestamp(unix_seconds, UTC)))
