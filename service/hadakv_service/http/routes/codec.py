"""The codec alone: encode and decode without a session."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import HEAD_DIMS, CodecSpec, Encoded, Stream
from hadakv_service.errors import InvalidRequest, NonFinite
from hadakv_service.http.app_state import app_state
from hadakv_service.http.content import MsgpackResponse, is_json
from hadakv_service.operations.append import INPUT_DTYPES
from hadakv_service.operations.read import check_response_size, row_nbytes
from hadakv_service.sessions.page import first_non_finite, on_host
from hadakv_service.wire import messages, responses, serialization

router = APIRouter()


class _EncodeJob:
    """Encoding as a job of the device; shares a launch with whatever else waits."""

    key = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def prepare(self, batch: frozenset[Any]) -> Sequence[Stream]:  # noqa: ARG002 - nothing is stored, nothing evicted
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
        answer: responses.Encoded = {}
        if body.diagnostics and spec.codec.kind == "quantized":
            seen = await service.device.call(lambda: service.backend.diagnose(x, spec))
            answer = {"scaled": serialization.tensor(seen.scaled), "rms": serialization.tensor(seen.rms)}
            encoded = seen.encoded
        else:
            encoded = await service.device.run(_EncodeJob(Stream(x, spec)))
    host = on_host(encoded, service.backend)
    if not service.backend.all_finite(encoded, spec):
        raise NonFinite("x", row=first_non_finite(host, spec))
    return MsgpackResponse({**serialization.stream(host, spec), **answer})


@router.post("/decode", response_model=None)
async def decode(request: Request) -> Response:
    """Decode what `encode` or a session gave."""
    is_json(request)
    service = app_state(request)
    async with service.bodies.read(request) as raw:
        body = serialization.decode_body(messages.DecodeBody, raw)
        spec = _spec("head_dim", body.head_dim, body.codec)
        encoded = _encoded(body, spec)
        rows = encoded.packed.size // spec.row_bytes
        check_response_size("form", rows * row_nbytes(spec, body.form), int(service.settings.max_body))
        inverse = body.form != "rotated"
        dtype = body.form if inverse else "float32"
        values = await service.device.call(lambda: service.backend.decode(encoded, spec, dtype, inverse=inverse))
    answer: responses.Values = {"values": serialization.tensor(values)}
    return MsgpackResponse(answer)


def _spec(field: str, head_dim: int, options: messages.CodecOptions) -> CodecSpec:
    if head_dim not in HEAD_DIMS:
        raise InvalidRequest([(field, f"head_dim must be one of {HEAD_DIMS}, not {head_dim}")])
    return options.codec("codec").at(head_dim)


def _encoded(body: messages.DecodeBody, spec: CodecSpec) -> Encoded:
    """The request's tensors, checked against the codec.

    Raises:
        InvalidRequest: a tensor is missing, not wanted, or of another shape than the codec's.
    """
    float16 = spec.codec.kind == "float16"
    wanted = ("values",) if float16 else ("packed", "norms")
    for name in ("packed", "norms", "values"):
        if (getattr(body, name) is not None) != (name in wanted):
            raise InvalidRequest([(name, "is missing" if name in wanted else f"is not for kind {spec.codec.kind}")])
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


def _check_axes(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise InvalidRequest([(f"{name}.shape", f"must be {list(wanted)} for this codec, not {list(shape)}")])
