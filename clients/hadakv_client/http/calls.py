"""Calls of the service. Each function builds the request and the parser for its response."""

import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import numpy as np

from hadakv_client.errors import ProtocolError
from hadakv_client.http import responses
from hadakv_client.http.arguments import CodecOptions, Position, check_prefix, integer, to_codec
from hadakv_client.http.files import OCTET_STREAM, FileBody, FileDestination
from hadakv_client.http.responses import Form, Layout, ValueForm, check_equal, required_field
from hadakv_client.http.tensors import Array, LayerArrays, to_numpy
from hadakv_client.protocol import MSGPACK, Call, Request, Response
from hadakv_client.results import AppendResult, Range, ServiceStatus, SessionInfo, SessionPage, StoredAppend
from hadakv_kernels import Diagnostics, Encoded

_ACCEPT = {"accept": MSGPACK}


def append(
    session: str,
    kv: tuple[Array | LayerArrays, Array | LayerArrays],
    layer: int,
    position: Position,
    codec: dict[str, Any] | None,
    *,
    minimal: bool,
) -> Call[AppendResult]:
    """Build POST /sessions/{id}/kv. It is idempotent with a position, but not with "end".

    Args:
        session: valid session id.
        kv: keys and values `[layers, kv_heads, tokens, head_dim]`.
        layer: index of the first layer.
        position: position of the first token.
        codec: result of `session_codec`.
        minimal: omit the stored streams. The result is then an `AppendResult`, else a `StoredAppend`.
    """
    k, v = kv
    at = None if position == "end" else integer(position, "position")
    optional = {"position": at, "codec": codec}
    message = {"k": k, "v": v, "layer": integer(layer, "layer")} | {
        key: x for key, x in optional.items() if x is not None
    }
    headers = _ACCEPT | ({"prefer": "return=minimal"} if minimal else {})
    path = f"/sessions/{session}/kv"
    request = Request.with_body("POST", path, message, headers=headers, idempotent=at is not None)

    def parse(response: Response) -> AppendResult:
        document = response.document()
        check_equal("session", required_field(document, "session", str), session)
        start, tokens, length = (required_field(document, name, int) for name in ("position", "tokens", "length"))
        check_equal("position", start, start if at is None else at)
        check_equal("tokens", tokens, k.shape[-2])
        check_equal("length", length, start + tokens)
        result = (session, start, tokens, length, response.status == 201)
        if minimal:
            return AppendResult(*result)
        return StoredAppend(*result, *(responses.appended_stream(document.get(name), name, tokens) for name in "kv"))

    return Call(request, parse)


def read(
    session: str,
    start: int | None,
    stop: int | None,
    layers: tuple[int, int] | None,
    form: Form,
    layout: Layout = "linear",
) -> Call[Range[Any]]:
    """Build GET /sessions/{id}/kv."""
    ring = layout == "ring"
    start = None if start is None else integer(start, "start")
    stop = None if stop is None else integer(stop, "stop")
    first_layer, last_layer = (integer(layer, "layers") for layer in layers) if layers else (0, 0)
    optional = {"start": start, "stop": stop, "layers": f"{first_layer}:{last_layer}" if layers else None}
    # The service rejects an unknown layout.
    optional["layout"] = None if layout == "linear" else layout
    query = urlencode({key: x for key, x in optional.items() if x is not None} | {"form": form})

    def parse(response: Response) -> Range[Any]:
        document = response.document()
        check_equal("session", required_field(document, "session", str), session)
        check_equal("group", required_field(document, "group", int), 0)
        first, last, length = (required_field(document, name, int) for name in ("start", "stop", "length"))
        check_equal("start", first, first if start is None else start)
        check_equal("stop", last, last if stop is None else min(stop, length))
        held = responses.layer_indices(document, layers)
        axes = (len(held), None if ring else last - first)
        k, v = (responses.stored_stream(document.get(name), name, form, axes) for name in "kv")
        revision = response.headers.get("hadakv-revision")
        return Range(first, last, length, k, v, session=session, layers=held, revision=revision)

    return Call(Request("GET", f"/sessions/{session}/kv?{query}", _ACCEPT), parse)


def info(session: str) -> Call[SessionInfo]:
    """Build GET /sessions/{id}."""
    return Call(Request("GET", f"/sessions/{session}", _ACCEPT), _session_info)


def create(session: str, options: Mapping[str, Any]) -> Call[SessionInfo]:
    """Build PUT /sessions/{id}. Options that are None are not sent."""
    given = {name: option for name, option in options.items() if option is not None}
    return Call(Request.with_body("PUT", f"/sessions/{session}", given, headers=_ACCEPT), _session_info)


def _session_info(response: Response) -> SessionInfo:
    return responses.session_info(response.document())


def truncate(session: str, length: int) -> Call[SessionInfo]:
    """Build POST /sessions/{id}/truncate."""
    body = {"length": integer(length, "length")}
    return Call(Request.with_body("POST", f"/sessions/{session}/truncate", body, headers=_ACCEPT), _session_info)


def fork(session: str, new: str, length: int | None) -> Call[SessionInfo]:
    """Build POST /sessions/{id}/fork. It is not idempotent: a second attempt fails because the session exists."""
    body = {"id": new} | ({} if length is None else {"length": integer(length, "length")})
    request = Request.with_body("POST", f"/sessions/{session}/fork", body, headers=_ACCEPT, idempotent=False)
    return Call(request, _session_info)


def export_session(session: str, destination: FileDestination) -> Call[None]:
    """Build GET /sessions/{id}/export."""
    return Call(Request("GET", f"/sessions/{session}/export", destination=destination), Response.check_file)


def import_session(session: str, file: FileBody) -> Call[SessionInfo]:
    """Build POST /sessions/{id}/import. It is not idempotent: a second attempt fails because the session exists.

    A warning of the service becomes a `UserWarning`: the file has no digest, so damage cannot be found.
    """
    headers = _ACCEPT | {"content-type": OCTET_STREAM, "content-length": str(file.nbytes)}

    def parse(response: Response) -> SessionInfo:
        info = _session_info(response)
        if text := response.headers.get("warning"):
            # The value is a code, an agent and a quoted text (RFC 7234, 5.5).
            warnings.warn(text.split('"')[1] if text.count('"') == 2 else text, stacklevel=2)
        return info

    return Call(Request("POST", f"/sessions/{session}/import", headers, file, idempotent=False), parse)


def delete(session: str) -> Call[None]:
    """Build DELETE /sessions/{id}. A retry that gets 404 counts as success: the first attempt deleted the session."""

    def parse_retry(response: Response) -> None:
        if response.status != 404:
            response.check()

    return Call(Request("DELETE", f"/sessions/{session}"), Response.check, parse_retry)


def list_sessions(prefix: str | None, after: str | None) -> Call[SessionPage]:
    """Build GET /sessions."""
    query = urlencode({key: x for key, x in {"prefix": check_prefix(prefix), "after": after}.items() if x})
    path = f"/sessions?{query}" if query else "/sessions"

    def parse(response: Response) -> SessionPage:
        page = responses.session_page(response.document())
        if page.next is not None and page.next <= (after or ""):
            raise ProtocolError(f"invalid response: next is {page.next!r}, which is not after {after!r}")
        return page

    return Call(Request("GET", path, _ACCEPT), parse)


def encode(x: Any, codec: CodecOptions | None, *, diagnostics: bool) -> Call[Encoded | Diagnostics]:
    """Build POST /encode."""
    array, options = to_numpy(x, "x"), to_codec(codec)
    if diagnostics and options.kind == "float16":
        raise ValueError("a codec of kind float16 has no diagnostics")
    message = {"x": array, "codec": options.to_mapping(), "diagnostics": diagnostics}
    request = Request.with_body("POST", "/encode", message, headers=_ACCEPT)

    def parse(response: Response) -> Encoded | Diagnostics:
        document = response.document()
        result = responses.diagnostics(document) if diagnostics else responses.encoded(document, "x")
        packed = result.encoded.packed if isinstance(result, Diagnostics) else result.packed
        check_equal("packed.shape", packed.shape[:-1], array.shape[:-1])
        return result

    return Call(request, parse)


def decode(encoded: Encoded, codec: CodecOptions | None, head_dim: int, form: ValueForm) -> Call[Array]:
    """Build POST /decode."""
    options, packed = to_codec(codec), to_numpy(encoded.packed, "packed", "uint8")
    if options.kind == "float16":
        stream = {"values": packed.view(np.float16)}
    else:
        stream = {"packed": packed, "norms": to_numpy(encoded.norms, "norms", "float32")}
    message = {**stream, "codec": options.to_mapping(), "head_dim": integer(head_dim, "head_dim"), "form": form}
    request = Request.with_body("POST", "/decode", message, headers=_ACCEPT)

    def parse(response: Response) -> Array:
        decoded = responses.values(response.document(), "decoded", form)
        check_equal("values.shape", decoded.shape, (*packed.shape[:-1], head_dim))
        return decoded

    return Call(request, parse)


def max_body() -> Call[int | None]:
    """Build GET /healthz for the limit of request bodies in bytes; None if the service does not report it."""

    def parse(response: Response) -> int | None:
        limit = response.document().get("max_body_nbytes")
        return limit if isinstance(limit, int) else None

    return Call(Request("GET", "/healthz", _ACCEPT), parse)


def status() -> Call[ServiceStatus]:
    """Build GET /readyz."""
    return Call(Request("GET", "/readyz", _ACCEPT), lambda response: responses.service_status(response.document()))


def probe(path: str) -> Call[None]:
    """Build GET /healthz or GET /readyz."""
    return Call(Request("GET", path, _ACCEPT), Response.check)
