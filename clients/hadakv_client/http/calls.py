"""The calls of the service: each function checks its arguments, makes the request and says how to read the response."""

import re
from collections.abc import Mapping
from operator import index
from typing import Any, Literal, TypedDict
from urllib.parse import urlencode

import numpy as np

from hadakv_client.errors import ProtocolError
from hadakv_client.http import responses as parsing
from hadakv_client.http.files import OCTETS, FileBody, Target
from hadakv_client.http.responses import Form, Layout, ValueForm, expect, member
from hadakv_client.http.tensors import Array, to_numpy
from hadakv_client.protocol import MSGPACK, Call, Request, Response
from hadakv_client.results import Appended, Page, Placed, Range, SessionInfo
from hadakv_kernels import Codec, Diagnostics, Encoded

CodecOptions = Codec | Mapping[str, Any]
Position = int | Literal["end"]


class SessionOptions(TypedDict, total=False):
    """What can be decided when a session is created; what is left out or None stays open.

    Attributes:
        layers: how many layers there may be.
        kv_heads: heads of k and v.
        head_dim: elements of one vector.
        window: how many tokens each layer keeps.
        ttl_seconds: how long the session lives unused.
        durability: what of it outlives the service's process: nothing; what had no room in memory, and all of it after
            an orderly end; or all that was ever answered.
    """

    layers: int | None
    kv_heads: int | None
    head_dim: int | None
    window: int | None
    ttl_seconds: float | None
    durability: Literal["memory", "spill", "ack"] | None


_SESSION_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_ACCEPT = {"accept": MSGPACK}


def checked_id(session: str) -> str:
    """The id itself.

    Raises:
        ValueError: it is not 1 to 128 of A-Z a-z 0-9 . _ : - or it is "." or "..".
    """
    # URLs give "." and ".." as a whole segment a meaning of their own.
    if not _SESSION_ID.fullmatch(session) or session in {".", ".."}:
        raise ValueError(f"a session's id must be 1 to 128 of A-Z a-z 0-9 . _ : - and not {session!r}")
    return session


def codec_of(options: CodecOptions | None) -> Codec:
    """One codec.

    Raises:
        UnsupportedCodec: an option is unknown or has a value there is no codec for; it is a `ValueError`.
    """
    return options if isinstance(options, Codec) else Codec.from_mapping(options or {})


def session_codec(options: CodecOptions | None) -> dict[str, Any] | None:
    """The codec of a session as it stands on the wire: one for both streams, or one for each under `k` and `v`.

    Raises:
        UnsupportedCodec: likewise.
    """
    if options is None or isinstance(options, Codec) or not options.keys() & {"k", "v"}:
        return None if options is None else codec_of(options).to_mapping()
    if unknown := options.keys() - {"k", "v"}:
        raise ValueError(f"a codec for each of k and v has no {', '.join(sorted(unknown))} beside them")
    return {stream: codec_of(each).to_mapping() for stream, each in options.items()}


def streams(k: Any, v: Any) -> tuple[Array, Array]:
    """Arrays that can be appended.

    Raises:
        TypeError: k or v is no array of float32, float16 or bfloat16.
        ValueError: their axes are not [layers, kv_heads, tokens, head_dim] or the last three.
    """
    arrays = to_numpy(k, "k"), to_numpy(v, "v")
    for name, array in zip("kv", arrays, strict=True):
        if array.ndim not in (3, 4):
            raise ValueError(f"{name} must be [layers, kv_heads, tokens, head_dim], or [kv_heads, tokens, head_dim]")
    return arrays


def append(
    session: str,
    kv: tuple[Array, Array],
    layer: int,
    position: Position,
    codec: dict[str, Any] | None,
    *,
    minimal: bool,
) -> Call[Placed]:
    """POST /sessions/{id}/kv. With a position it can be repeated safely, with "end" it cannot.

    Args:
        session: checked id.
        kv: what `streams` gave.
        layer: index of the first layer.
        position: of the first token.
        codec: what `session_codec` gave.
        minimal: leave out what was stored: the call gives `Placed`, else `Appended`.
    """
    k, v = kv
    at = None if position == "end" else index(position)
    optional = {"position": at, "codec": codec}
    message = {"k": k, "v": v, "layer": index(layer)} | {key: x for key, x in optional.items() if x is not None}
    headers = _ACCEPT | ({"prefer": "return=minimal"} if minimal else {})
    path = f"/sessions/{session}/kv"
    request = Request.with_body("POST", path, message, headers=headers, idempotent=at is not None)

    def parse(response: Response) -> Placed:
        answer = response.document()
        expect("session", member(answer, "session", str), session)
        start, tokens, length = (member(answer, name, int) for name in ("position", "tokens", "length"))
        expect("position", start, start if at is None else at)
        expect("tokens", tokens, k.shape[-2])
        expect("length", length, start + tokens)
        placed = (session, start, tokens, length, response.status == 201)
        if minimal:
            return Placed(*placed)
        return Appended(*placed, *(parsing.appended_stream(answer.get(name), name, tokens) for name in "kv"))

    return Call(request, parse)


def read(
    session: str,
    start: int | None,
    stop: int | None,
    layers: tuple[int, int] | None,
    form: Form,
    layout: Layout = "linear",
) -> Call[Range[Any]]:
    """GET /sessions/{id}/kv."""
    ring = layout == "ring"
    optional = {"start": start, "stop": stop, "layers": f"{layers[0]}:{layers[1]}" if layers else None}
    optional["layout"] = layout if ring else None
    query = urlencode({key: x for key, x in optional.items() if x is not None} | {"form": form})

    def parse(response: Response) -> Range[Any]:
        answer = response.document()
        first, last, length = (member(answer, name, int) for name in ("start", "stop", "length"))
        tokens = None if ring else last - first
        k, v = (parsing.stored_stream(answer.get(name), name, form, tokens) for name in "kv")
        return Range(first, last, length, k, v)

    return Call(Request("GET", f"/sessions/{session}/kv?{query}", _ACCEPT), parse)


def info(session: str) -> Call[SessionInfo]:
    """GET /sessions/{id}."""
    return Call(Request("GET", f"/sessions/{session}", _ACCEPT), _session_info)


def create(session: str, options: Mapping[str, Any]) -> Call[SessionInfo]:
    """PUT /sessions/{id}; options that are None are left open."""
    given = {name: option for name, option in options.items() if option is not None}
    return Call(Request.with_body("PUT", f"/sessions/{session}", given, headers=_ACCEPT), _session_info)


def _session_info(response: Response) -> SessionInfo:
    return parsing.session_info(response.document())


def truncate(session: str, length: int) -> Call[SessionInfo]:
    """POST /sessions/{id}/truncate."""
    body = {"length": index(length)}
    return Call(Request.with_body("POST", f"/sessions/{session}/truncate", body, headers=_ACCEPT), _session_info)


def fork(session: str, new: str, length: int | None) -> Call[SessionInfo]:
    """POST /sessions/{id}/fork; a repetition would find that the new session exists."""
    body = {"id": new} | ({} if length is None else {"length": index(length)})
    request = Request.with_body("POST", f"/sessions/{session}/fork", body, headers=_ACCEPT, idempotent=False)
    return Call(request, _session_info)


def export(session: str, target: Target) -> Call[None]:
    """GET /sessions/{id}/export."""
    return Call(Request("GET", f"/sessions/{session}/export", target=target), Response.check_file)


def import_(session: str, file: FileBody) -> Call[SessionInfo]:
    """POST /sessions/{id}/import; a repetition would find that the session exists."""
    headers = _ACCEPT | {"content-type": OCTETS, "content-length": str(file.nbytes)}
    return Call(Request("POST", f"/sessions/{session}/import", headers, file, idempotent=False), _session_info)


def delete(session: str) -> Call[None]:
    """DELETE /sessions/{id}. A repetition that finds nothing found the work done."""

    def parse_repetition(response: Response) -> None:
        if response.status != 404:
            response.check()

    return Call(Request("DELETE", f"/sessions/{session}"), Response.check, parse_repetition)


def sessions(prefix: str | None, after: str | None) -> Call[Page]:
    """GET /sessions."""
    query = urlencode({key: x for key, x in {"prefix": prefix, "after": after}.items() if x})
    path = f"/sessions?{query}" if query else "/sessions"

    def parse(response: Response) -> Page:
        page = parsing.page(response.document())
        if page.next is not None and page.next <= (after or ""):
            raise ProtocolError(f"the list goes on after {page.next!r}, where it has been already")
        return page

    return Call(Request("GET", path, _ACCEPT), parse)


def encode(x: Any, codec: CodecOptions | None, *, diagnostics: bool) -> Call[Encoded | Diagnostics]:
    """POST /encode."""
    array, options = to_numpy(x, "x"), codec_of(codec)
    if diagnostics and options.kind == "float16":
        raise ValueError("a codec of kind float16 computes nothing that could be diagnosed")
    message = {"x": array, "codec": options.to_mapping(), "diagnostics": diagnostics}
    request = Request.with_body("POST", "/encode", message, headers=_ACCEPT)

    def parse(response: Response) -> Encoded | Diagnostics:
        answer = response.document()
        seen = parsing.diagnostics(answer) if diagnostics else parsing.encoded(answer, "x")
        packed = seen.encoded.packed if isinstance(seen, Diagnostics) else seen.packed
        expect("packed.shape", packed.shape[:-1], array.shape[:-1])
        return seen

    return Call(request, parse)


def decode(encoded: Encoded, codec: CodecOptions | None, head_dim: int, form: ValueForm) -> Call[Array]:
    """POST /decode."""
    options, packed = codec_of(codec), to_numpy(encoded.packed, "packed", "uint8")
    if options.kind == "float16":
        stream = {"values": packed.view(np.float16)}
    else:
        stream = {"packed": packed, "norms": to_numpy(encoded.norms, "norms", "float32")}
    message = {**stream, "codec": options.to_mapping(), "head_dim": index(head_dim), "form": form}
    request = Request.with_body("POST", "/decode", message, headers=_ACCEPT)

    def parse(response: Response) -> Array:
        decoded = parsing.values(response.document(), "decoded", form)
        expect("values.shape", decoded.shape, (*packed.shape[:-1], head_dim))
        return decoded

    return Call(request, parse)


def probe(path: str) -> Call[None]:
    """GET /healthz or /readyz."""
    return Call(Request("GET", path, _ACCEPT), Response.check)
