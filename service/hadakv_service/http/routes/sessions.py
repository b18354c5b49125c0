"""Create, look at, list and delete sessions."""

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
    """Create a session; the same again changes nothing, another shape is refused."""
    key = session_key(request)
    service = app_state(request)
    job = CreateOperation(key, await _asked(request), service.store, service.new_session)
    answer = await service.device.run(job)
    return metadata_response(request, answer, 201 if job.created else 200)


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


def describe(session_id: str, entry: SessionRecord) -> responses.SessionInfo:
    """A session as clients see it."""
    session = entry.session
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
        "tier": _tier(entry),
        "durability": session.durability,
        "window": session.window,
        "ttl_seconds": session.ttl_seconds,
        "created": _moment(entry.created),
        "last_used": _moment(entry.last_used),
        "expires": None if entry.expires is None else _moment(entry.expires),
    }


def _tier(entry: SessionRecord) -> Literal["memory", "mixed", "disk"]:
    """Where a session's tokens are."""
    pages = list(entry.session.all_pages())
    here = sum(page.is_resident for page in pages)
    if here == len(pages) and (pages or not entry.session.rows):
        return "memory"
    return "mixed" if here else "disk"


def _moment(unix_seconds: float) -> str:
    return str(msgspec.to_builtins(datetime.fromtimestamp(unix_seconds, UTC)))
