"""What the calls answer, key by key: what the OpenAPI document says of it, and what the routes are checked against."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from hadakv_service.sessions.session import Durability


def _named(component: str) -> Meta:
    """A mapping that the document describes elsewhere, under that name."""
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{component}"})


Natural = Annotated[int, Meta(ge=0)]
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
TensorMap = Annotated[dict[str, Any], _named("Tensor")]
CodecMap = Annotated[dict[str, Any], _named("Codec")]
StreamMap = Annotated[dict[str, Any], _named("Stream")]


class Packed(TypedDict):
    """Encoded vectors: uint8 rows and float32 norms."""

    packed: TensorMap
    norms: TensorMap


class Values(TypedDict):
    """Vectors as values: float16 where that is how they are stored, else in the form that was asked for."""

    values: TensorMap


class Encoded(TypedDict):
    """What `/encode` made; `scaled` and `rms` with `diagnostics` only, `values` instead for kind float16."""

    packed: NotRequired[TensorMap]
    norms: NotRequired[TensorMap]
    scaled: NotRequired[TensorMap]
    rms: NotRequired[TensorMap]
    values: NotRequired[TensorMap]


class StoredAppend(TypedDict):
    """What an append stored. With `Prefer: return=minimal` it has neither `k` nor `v`."""

    session: str
    position: Natural
    tokens: Natural
    length: Natural
    k: NotRequired[StreamMap]
    v: NotRequired[StreamMap]


class Range(TypedDict):
    """A range of tokens `[layers, kv_heads, stop - start, ...]`; `k` and `v` are null before the first append."""

    start: Natural
    stop: Natural
    length: Natural
    k: StreamMap | None
    v: StreamMap | None


class Codecs(TypedDict):
    """The codecs of a session's two streams."""

    k: CodecMap
    v: CodecMap


class LayerSpan(TypedDict):
    """What one layer holds: positions `start` to `length`."""

    layer: Natural
    start: Natural
    length: Natural


class SessionInfo(TypedDict):
    """A session. `codec`, `kv_heads` and `head_dim` are null until they are decided."""

    session: str
    codec: Codecs | None
    kv_heads: Natural | None
    head_dim: Natural | None
    declared_layers: Natural | None
    layers: list[LayerSpan]
    length: Natural
    nbytes: Natural
    raw_nbytes: Natural
    tier: Literal["memory", "mixed", "disk"]
    durability: Durability
    window: Natural | None
    ttl_seconds: float | None
    created: Moment
    last_used: Moment
    expires: Moment | None


class SessionList(TypedDict):
    """Sessions in order of id; `next` is the `after` of the next page."""

    sessions: list[SessionInfo]
    next: str | None


class Health(TypedDict):
    """The process answers."""

    status: Literal["ok"]
    version: str


class Readiness(TypedDict):
    """What runs, and how much it holds."""

    status: Literal["ready"]
    version: str
    backend: str
    detail: str
    sessions: Natural
    used_nbytes: Natural
    budget_nbytes: Natural
    disk_used_nbytes: Natural
    disk_budget_nbytes: Natural
    disk_room_nbytes: Natural
