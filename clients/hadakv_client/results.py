"""Values that the client returns for the responses of the service."""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

from hadakv_kernels import Codec, Encoded

Stream = TypeVar("Stream")


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Position of appended tokens in their session.

    Attributes:
        session: session id.
        position: position of the first token.
        tokens: number of tokens.
        length: `position + tokens`.
        created: whether this append created the session. It is False if the response to an earlier attempt was lost.
    """

    session: str
    position: int
    tokens: int
    length: int
    created: bool


@dataclass(frozen=True, slots=True, eq=False)
class StoredAppend(AppendResult):
    """Position of appended tokens, and the encoded streams that were stored. Arrays are read-only.

    Attributes:
        k: packed keys uint8 `[layers, kv_heads, tokens, row_bytes]`, and their norms.
        v: packed values uint8 `[layers, kv_heads, tokens, row_bytes]`, and their norms.
    """

    k: Encoded
    v: Encoded


@dataclass(frozen=True, slots=True, eq=False)
class Range(Generic[Stream]):
    """Tokens `start` to `stop` of a session.

    Attributes:
        start: position of the first token.
        stop: position after the last token.
        length: number of tokens in these layers.
        k: keys `[layers, kv_heads, stop - start, ...]`, read-only; `[0, 0, 0, 0]` if the session has no tokens yet.
        v: values of the same shape and dtype as k.
        session: session id.
        layers: indices in the model of the layers on the first axis of k and v.
        group: group of layers; always 0.
        revision: changes when tokens of the session are deleted or replaced, but not with an append. Ranges of one
            revision fit together. None if the service does not report it.
    """

    start: int
    stop: int
    length: int
    k: Stream
    v: Stream
    session: str
    layers: tuple[int, ...]
    group: int = 0
    revision: str | None = None


class Codecs(NamedTuple):
    """Codecs of the two streams of a session."""

    k: Codec
    v: Codec


class LayerSpan(NamedTuple):
    """Tokens that one layer holds: positions `start` to `length`."""

    layer: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """Description of a session. `codec`, `kv_heads` and `head_dim` are None until the session has them.

    Attributes:
        session: session id.
        codec: codecs of k and v.
        kv_heads: number of heads of k and v.
        head_dim: number of elements of one vector.
        layers: layers that were declared or appended to.
        length: number of tokens of the shortest layer; 0 without layers.
        nbytes: stored size in bytes.
        raw_nbytes: size of the same tokens as float16, in bytes.
        tier: location of the tokens: "memory", "disk", or "mixed".
        window: number of tokens that each layer keeps; None keeps all.
        ttl_seconds: idle time in seconds after which the session expires; None never expires.
        durability: "memory", "spill" or "ack"; see `SessionOptions`.
        created: creation time.
        last_used: time of the last append or read.
        expires: expiry time if the session is not used again; None never expires.
    """

    session: str
    codec: Codecs | None
    kv_heads: int | None
    head_dim: int | None
    layers: tuple[LayerSpan, ...]
    length: int
    nbytes: int
    raw_nbytes: int
    tier: str
    window: int | None
    ttl_seconds: float | None
    durability: str
    created: datetime
    last_used: datetime
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """State of a service that is ready.

    Attributes:
        version: version of the service.
        backend: backend of the codec: "metal", "cuda" or "cpu".
        detail: device of the backend, and its threads.
        sessions: number of sessions of all tenants.
        used_nbytes: memory that sessions use, in bytes.
        budget_nbytes: memory budget in bytes.
        disk_used_nbytes: disk space that sessions use, in bytes.
        disk_budget_nbytes: disk budget in bytes; 0 if the disk is disabled.
        disk_room_nbytes: bytes that can still be added on disk.
        uptime_seconds: seconds since the service started.
    """

    version: str
    backend: str
    detail: str
    sessions: int
    used_nbytes: int
    budget_nbytes: int
    disk_used_nbytes: int
    disk_budget_nbytes: int
    disk_room_nbytes: int
    uptime_seconds: float


class SessionPage(NamedTuple):
    """Part of the list of sessions.

    Attributes:
        sessions: descriptions in order of session id.
        next: id after which the next part starts; None for the last part.
    """

    sessions: tuple[SessionInfo, ...]
    next: str | None
