"""Decode and validate request bodies; encode responses. Neither copies large tensors."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, CodecSpec, Encoded
from hadakv_service.errors import InvalidRequest, MalformedBody
from hadakv_service.wire.well_formed import check_well_formed

Buffer = bytes | bytearray | memoryview
# Copying a smaller tensor into the response is cheaper than sending it as its own chunk.
LARGE_TENSOR_NBYTES = 64 * 1024
# The length of a msgpack bin has 32 bits.
MAX_TENSOR_NBYTES = (1 << 32) - 1
# Chunks of 64 KiB are slow to send; whole tensors would delay other connections.
CHUNK_NBYTES = 1 << 20
# NumPy computes the name of a dtype on each access.
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {np.dtype(np.uint8): "uint8"}
Body = TypeVar("Body", bound=msgspec.Struct)


def split(data: Buffer) -> Iterator[Buffer]:
    """Yield bytes in parts of at most `CHUNK_NBYTES`."""
    for start in range(0, len(data), CHUNK_NBYTES):
        yield data[start : start + CHUNK_NBYTES]


def decode_body(kind: type[Body], body: Buffer, *, json: bool = False) -> Body:
    """Parse and validate a body. Its tensors are views of it.

    Args:
        kind: the struct to return.
        body: the bytes.
        json: whether the body is JSON and not msgpack.

    Raises:
        MalformedBody: the body is not exactly one well-formed value.
        InvalidRequest: a field is missing, unknown or of the wrong type.
    """
    try:
        return msgspec.json.decode(body, type=kind) if json else msgspec.msgpack.decode(body, type=kind)
    except msgspec.ValidationError as error:
        if not json:
            _check_not_json(body)
            check_well_formed(memoryview(body))
        raise InvalidRequest([field_and_reason(error)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not json:
            _check_not_json(body)
        raise MalformedBody(f"The body is not valid {'JSON' if json else 'msgpack'}: {error}.") from None


# Blanks, then the start of a JSON object or array, or of UTF-8 with a byte order mark. No msgpack map starts so.
_JSON_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*[{\[]")


def _check_not_json(body: Buffer) -> None:
    """Reject JSON that was sent as msgpack with a message that says so."""
    if _JSON_START.match(body):
        raise MalformedBody(
            "The body is not valid msgpack: this looks like JSON. Send msgpack, or, if the call takes JSON, "
            "'Content-Type: application/json'."
        )


_LOCATED = re.compile(r"(?P<reason>.*) - at `(?:key` in `)?\$\.?(?P<field>.*)`$")
_NAMED = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>.*?)`")


def field_and_reason(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the field that msgspec rejected, and the reason."""
    message = str(error)
    located = _LOCATED.match(message)
    field, reason = (located["field"], located["reason"]) if located else ("", message)
    if named := _NAMED.match(reason):
        field = f"{field}.{named['name']}".lstrip(".")
        reason = "is missing" if named["what"].startswith("missing") else "is not known"
    return field or "body", reason


def tensor(array: NDArray[Any]) -> dict[str, Any]:
    """Return a tensor as it is sent in a response."""
    return {"dtype": _DTYPE_NAMES[array.dtype], "shape": array.shape, "data": array}


def stream_arrays(encoded: Encoded, spec: CodecSpec) -> dict[str, NDArray[Any]]:
    """Return the arrays of one encoded stream, in host memory, by their names."""
    if spec.codec.kind == "float16":
        return {"values": encoded.packed.view(np.float16)}
    return {"packed": encoded.packed, "norms": encoded.norms}


def stream(encoded: Encoded, spec: CodecSpec) -> dict[str, Any]:
    """Return one encoded stream as it is sent in a response."""
    if spec.codec.kind == "float16":
        return {"values": tensor(encoded.packed.view(np.float16))}
    packed, norms = encoded.packed, encoded.norms
    return {
        "packed": {"dtype": "uint8", "shape": packed.shape, "data": packed},
        "norms": {"dtype": "float32", "shape": norms.shape, "data": norms},
    }


class Deferred:
    """Bytes of a large tensor that are made while the response is sent.

    Args:
        nbytes: number of bytes.
        pieces: yields functions that make the bytes piece by piece, in order.
    """

    __slots__ = ("nbytes", "pieces")

    def __init__(self, nbytes: int, pieces: Callable[[], Iterator[Callable[[], Buffer]]]) -> None:
        self.nbytes = nbytes
        self.pieces = pieces

    def __len__(self) -> int:
        return self.nbytes


def deferred_tensor(dtype: np.dtype[Any], shape: Sequence[int], data: Deferred) -> dict[str, Any]:
    """Return a tensor whose bytes are made later, as it is sent in a response."""
    return {"dtype": _DTYPE_NAMES[dtype], "shape": shape, "data": data}


_SMALL_ENCODER = msgspec.msgpack.Encoder(enc_hook=np.ndarray.tobytes)


def encode_small(response: Mapping[str, object]) -> bytes:
    """Encode a response without large tensors in one piece, in half the time of `encode_chunks`."""
    return _SMALL_ENCODER.encode(response)


def encode_chunks(response: Mapping[str, object]) -> list[Buffer]:
    """Encode a response as chunks. Each large tensor is a chunk of its own: a view of its array, not a copy."""
    # There is nothing deferred in the response.
    return cast(list[Buffer], encode_with_deferred(response))


def encode_with_deferred(response: Mapping[str, object]) -> list[Buffer | Deferred]:
    """Encode a response as chunks, as `encode_chunks` does. Each deferred tensor is a chunk too."""
    large: list[memoryview | Deferred] = []
    placeholder = b""

    def array_bytes(value: object) -> Buffer:
        nonlocal placeholder
        if isinstance(value, Deferred):
            large.append(value)
        elif not isinstance(value, np.ndarray):
            raise TypeError(f"cannot encode {type(value).__name__}")
        elif value.nbytes < LARGE_TENSOR_NBYTES:
            return value.tobytes()
        else:
            large.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        # Drawn after the request was received, so that no client can put the same bytes into a small tensor.
        placeholder = placeholder or os.urandom(16)
        return placeholder

    encoded = msgspec.msgpack.encode(response, enc_hook=array_bytes)
    return list(_interleave(encoded, placeholder, large)) if large else [encoded]


def _interleave(encoded: bytes, placeholder: bytes, large: list[memoryview | Deferred]) -> Iterator[Buffer | Deferred]:
    """Replace each placeholder, a bin of 16 bytes, by the header of a bin and the large tensor."""
    for tensor_bytes in large:
        before, _, encoded = encoded.partition(b"\xc4\x10" + placeholder)
        yield before + _bin_header(len(tensor_bytes))
        yield tensor_bytes
    yield encoded


def _bin_header(nbytes: int) -> bytes:
    """Return the shortest msgpack header of that many bytes."""
    for marker, width in ((b"\xc4", 1), (b"\xc5", 2), (b"\xc6", 4)):
        if nbytes < 1 << 8 * width:
            return marker + nbytes.to_bytes(width, "big")
    raise OverflowError(f"msgpack cannot hold a tensor of {nbytes} bytes")
