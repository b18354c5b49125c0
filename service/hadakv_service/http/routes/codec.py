"""Encode and decode tensors without a session."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import HEAD_DIMS, CodecSpec, Encoded, Stream
from hadakv_service.errors import InvalidRequest, NonFinite
from hadakv_service.http.app_state import AppState, app_state
from hadakv_service.http.content import is_json
from hadakv_service.http.sending import CountedResponse, released_on_error
from hadakv_service.http.strict_route import StrictRoute
from hadakv_service.operations.append import INPUT_DTYPES
from hadakv_service.operations.read import check_response_size, row_nbytes
from hadakv_service.sessions.page import first_non_finite, on_host
from hadakv_service.wire import messages, responses, serialization

router = APIRouter(route_class=StrictRoute)


class _EncodeJob:
    """Device job that encodes one tensor, in one launch with the rest of its batch."""

    key = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def prepare(self, batch: frozenset[Any]) -> Sequence[Stream]:  # noqa: ARG002 - it stores and evicts nothing
        return (self._stream,)

    def complete(self, encoded: Sequence[Encoded]) -> Encoded:
        return encoded[0]

    def roll_back(self) -> None:
        """Nothing to undo."""


@router.post("/encode", response_model=None)
async def encode(request: Request) -> Response:
    """Encode the last axis of a tensor."""
    is_json(request)
    service = app_state(request)
    async with service.bodies.read(request) as raw:
        body = serialization.decode_body(messages.EncodeBody, raw)
        x = body.x.array("x", *INPUT_DTYPES)
        spec = _spec("x.shape", x.shape[-1], body.codec)
        with_diagnostics = body.diagnostics and spec.codec.kind == "quantized"
        nbytes = x.size // spec.head_dim * (spec.nbytes + (_diagnostics_nbytes(spec) if with_diagnostics else 0))
        check_response_size("x", nbytes, int(service.settings.max_body))
        share = await service.sending.acquire_for(nbytes)
        with released_on_error(share):
            return CountedResponse(await _encoded_streams(service, Stream(x, spec), diagnose=with_diagnostics), share)


async def _encoded_streams(service: AppState, stream: Stream, *, diagnose: bool) -> dict[str, Any]:
    """Encode a tensor on the device. Return the response, with diagnostics if they are asked for."""
    x, spec = stream
    diagnostics: dict[str, Any] = {}
    if diagnose:
        diagnosed = await service.device.call(lambda: service.backend.diagnose(x, spec))
        diagnostics = {
            "scaled": serialization.tensor(diagnosed.scaled),
            "rms": serialization.tensor(diagnosed.rms),
        }
        encoded = diagnosed.encoded
    else:
        encoded = await service.device.run(_EncodeJob(stream))
    host = on_host(encoded, service.backend)
    if not service.backend.all_finite(encoded, spec):
        raise NonFinite("x", row=first_non_finite(host, spec))
    return {**serialization.stream(host, spec), **diagnostics}


def _diagnostics_nbytes(spec: CodecSpec) -> int:
    """Return the bytes of the scaled values and of the RMS of one vector, which are float32."""
    return 4 * (spec.head_dim + spec.blocks)


@router.post("/decode", response_model=None)
async def decode(request: Request) -> Response:
    """Decode a tensor that `/encode` or a session returned."""
    is_json(request)
    service = app_state(request)
    async with service.bodies.read(request) as raw:
        body = serialization.decode_body(messages.DecodeBody, raw)
        spec = _spec("head_dim", body.head_dim, body.codec)
        encoded = _encoded(body, spec)
        rows = encoded.packed.size // spec.row_bytes
        nbytes = rows * row_nbytes(spec, body.form)
        check_response_size("form", nbytes, int(service.settings.max_body))
        inverse = body.form != "rotated"
        dtype = body.form if inverse else "float32"
        share = await service.sending.acquire_for(nbytes)
        with released_on_error(share):
            values = await service.device.call(lambda: service.backend.decode(encoded, spec, dtype, inverse=inverse))
            content: responses.Values = {"values": serialization.tensor(values)}
            return CountedResponse(content, share)


def _spec(field: str, head_dim: int, options: messages.CodecOptions) -> CodecSpec:
    if head_dim not in HEAD_DIMS:
        raise InvalidRequest([(field, f"head_dim must be one of {HEAD_DIMS}, not {head_dim}")])
    return options.codec("codec").at(head_dim)


def _encoded(body: messages.DecodeBody, spec: CodecSpec) -> Encoded:
    """Return the tensors of the request, checked against the codec.

    Raises:
        InvalidRequest: a tensor is missing, does not belong to this kind of codec, or has the wrong shape.
    """
    float16 = spec.codec.kind == "float16"
    expected = ("values",) if float16 else ("packed", "norms")
    for name in ("packed", "norms", "values"):
        if (getattr(body, name) is not None) != (name in expected):
            raise InvalidRequest([(name, "is missing" if name in expected else f"is not for kind {spec.codec.kind}")])
    if body.values is not None:
        values = body.values.array("values", "float16")
        _check_axes("values", values.shape, (*values.shape[:-1], spec.head_dim))
        return Encoded(values.view("uint8"), values[..., :0].astype("float32"))
    assert body.packed is not None
    assert body.norms is not None
    packed, norms = body.packed.array("packed", "uint8"), body.norms.array("norms", "float32")
    _check_axes("packed", packed.shape, (*packed.shape[:-1], spec.row_bytes))
    _check_axes("norms", norms.shape, (*packed.shape[:-1], spec.norms))
    return Encoded(packed, norms)


def _check_axes(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise InvalidRequest([(f"{name}.shape", f"must be {list(expected)} for this codec, not {list(shape)}")])
