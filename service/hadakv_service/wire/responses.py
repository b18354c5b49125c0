"""Response bodies as TypedDicts. The OpenAPI document describes them, and mypy checks the routes against them."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from hadakv_service.sessions.session import Durability


def _named(component: str) -> Meta:
    """Return the annotation of a mapping whose schema is the OpenAPI component of that name."""
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{component}"})


Natural = Annotated[int, Meta(ge=0)]
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
TensorMap = Annotated[dict[str, Any], _named("Tensor")]
CodecMap = Annotated[dict[str, Any], _named("Codec")]
StreamMap = Annotated[dict[str, Any], _named("Stream")]
ReadStreamMap = Annotated[dict[str, Any], _named("ReadStream")]


class Packed(TypedDict):
    """Encoded vectors: uint8 rows and float32 norms."""

    packed: TensorMap
    norms: TensorMap


class Values(TypedDict):
    """Vectors as values: float16 for a codec of kind float16, else in the requested form."""

    values: TensorMap


class Encoded(TypedDict):
    """The result of `/encode`. `scaled` and `rms` need `diagnostics`. Kind float16 has `values` only."""

    packed: NotRequired[TensorMap]
    norms: NotRequired[TensorMap]
    scaled: NotRequired[TensorMap]
    rms: NotRequired[TensorMap]
    values: NotRequired[TensorMap]


class StoredAppend(TypedDict):
    """The tokens that an append stored. With `Prefer: return=minimal` there is neither `k` nor `v`."""

    session: str
    position: Natural
    tokens: Natural
    length: Natural
    k: NotRequired[StreamMap]
    v: NotRequired[StreamMap]


class Norms(TypedDict):
    """Norms of encoded vectors alone, with no elements for a codec of kind float16."""

    norms: TensorMap


class Range(TypedDict):
    """A range of tokens `[layers, kv_heads, stop - start, ...]`; `k` and `v` are null before the first append.

    `layers` has the index in the model of each layer along the first axis. `group` is 0.
    """

    session: str
    group: Natural
    layers: list[Natural]
    start: Natural
    stop: Natural
    length: Natural
    k: ReadStreamMap | None
    v: ReadStreamMap | None


class Codecs(TypedDict):
    """The codecs of a session's two streams."""

    k: CodecMap
    v: CodecMap


class LayerSpan(TypedDict):
    """The positions of one layer's tokens: `start` to `length`, exclusive."""

    layer: Natural
    start: Natural
    length: Natural


class SessionInfo(TypedDict):
    """A session. `codec`, `kv_heads` and `head_dim` are null until they are set, or the first append sets them."""

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
    """A page of sessions in order of id. `next` is the `after` of the next page, null on the last one."""

    sessions: list[SessionInfo]
    next: str | None


class Health(TypedDict):
    """The process is running."""

    status: Literal["ok"]
    version: str
    max_body_nbytes: Natural


class Readiness(TypedDict):
    """The service is ready: its backend, and how much of its budgets is used."""

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
    checkpoint_lag_seconds: float | None
    uptime_seconds: float
