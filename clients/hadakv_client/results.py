"""What the service answers, as the values a caller gets."""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

from hadakv_kernels import Codec, Encoded

Stream = TypeVar("Stream")


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an append went.

    Attributes:
        session: the session's id.
        position: position of the first token.
        tokens: how many there are.
        length: `position + tokens`.
        created: whether this append made the session; False if it took a second attempt to hear of it.
    """

    session: str
    position: int
    tokens: int
    length: int
    created: bool


@dataclass(frozen=True, slots=True, eq=False)
class Appended(Placed):
    """An append and what was stored: k and v, packed uint8 `[layers, kv_heads, tokens, row_bytes]` with their norms.

    Arrays are read-only.
    """

    k: Encoded
    v: Encoded


@dataclass(frozen=True, slots=True, eq=False)
class Range(Generic[Stream]):
    """Tokens `start` to `stop` of a session.

    Attributes:
        start: position of the first token.
        stop: position after the last.
        length: tokens those layers have.
        k: arrays `[layers, kv_heads, stop - start, ...]`, read-only; `[0, 0, 0, 0]` where nothing was appended yet.
        v: likewise.
    """

    start: int
    stop: int
    length: int
    k: Stream
    v: Stream


class Codecs(NamedTuple):
    """The codecs of a session's two streams."""

    k: Codec
    v: Codec


class LayerSpan(NamedTuple):
    """What one layer holds: positions `start` to `length`."""

    layer: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the service describes it. `codec`, `kv_heads` and `head_dim` are None until they are decided.

    Attributes:
        session: its id.
        codec: codecs of k and v.
        kv_heads: heads of k and v.
        head_dim: elements of one vector.
        layers: the layers that have been appended to.
        length: tokens of the shortest of them; 0 without any.
        nbytes: bytes stored.
        raw_nbytes: bytes the same tokens take as float16.
        tier: where they are: "memory", "disk", or "mixed".
        window: how many tokens each layer keeps; None keeps all.
        ttl_seconds: how long the session lives unused; None lives on.
        durability: what of it outlives the service's process: "memory", "spill" or "ack".
        created: when it was made.
        last_used: when it was last appended to or read.
        expires: when it goes unless it is used.
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


class Page(NamedTuple):
    """Part of the list of sessions, and the id to go on after, if there are more."""

    sessions: tuple[SessionInfo, ...]
    next: str | None
