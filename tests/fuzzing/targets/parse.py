"""Target "parse", in this process: request bodies are parsed, checked, and understood or rejected.

The first byte of an input selects the kind of body. Failures are unexpected exceptions, and disagreements: between our
check and `msgpack` about well-formed values, and between the append dispatcher and the routes.
"""

import asyncio
import hashlib
import io
import random
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgpack
import safetensors
from msgpack.fallback import Unpacker

from fuzzing import values
from fuzzing.http_cases import odd_tensor
from hadakv_service.errors import InvalidRequest, MalformedBody, ServiceError
from hadakv_service.http.append_endpoint import appended_session
from hadakv_service.http.routes import codec as codec_route
from hadakv_service.operations.append import AppendRequest
from hadakv_service.operations.files import layout
from hadakv_service.operations.files.import_session import read_header
from hadakv_service.operations.files.pages import LayeredReader, PagedReader, PageReader
from hadakv_service.operations.files.parse import FileHeader
from hadakv_service.operations.files.source import HashingReader
from hadakv_service.operations.files.spool import MemorySpool
from hadakv_service.sessions.session_id import check_session_id
from hadakv_service.wire import messages, serialization
from hadakv_service.wire.well_formed import MAX_DEPTH, MAX_ITEMS, check_well_formed
from support.contract import append_body, tensor
from support.inputs.mutated_bodies import MUTATIONS, NORMS, ROWS, K, flip_bytes, replace_value, reshape
from support.inputs.session_files import DIGEST_NBYTES, sealed


class Disagreement(AssertionError):
    """Two implementations disagree."""


def append(body: bytes) -> None:
    appended = AppendRequest.from_body(serialization.decode_body(messages.AppendBody, body))
    assert appended.k.shape == appended.v.shape
    # These are views of the body. They must be readable to their ends.
    assert appended.k.tobytes() is not None
    assert appended.v.tobytes() is not None


def session(body: bytes, *, json: bool = False) -> None:
    parsed = serialization.decode_body(messages.SessionBody, body, json=json)
    if parsed.codec:
        parsed.codec.codecs()


def truncate(body: bytes, *, json: bool = False) -> None:
    serialization.decode_body(messages.TruncateBody, body, json=json)


def fork(body: bytes, *, json: bool = False) -> None:
    check_session_id(serialization.decode_body(messages.ForkBody, body, json=json).id)


def encode(body: bytes) -> None:
    parsed = serialization.decode_body(messages.EncodeBody, body)
    x = parsed.x.array("x", "float32", "float16", "bfloat16")
    codec_route._spec("x.shape", x.shape[-1], parsed.codec)


def decode(body: bytes) -> None:
    parsed = serialization.decode_body(messages.DecodeBody, body)
    codec_route._encoded(parsed, codec_route._spec("head_dim", parsed.head_dim, parsed.codec))


def well_formed(body: bytes) -> None:
    """Compare with `msgpack`, which has no limits of depth or count."""
    try:
        check_well_formed(memoryview(body))
    except MalformedBody as error:
        if str(MAX_DEPTH) in error.detail or str(MAX_ITEMS) in error.detail:
            raise
        if refusal(body) is None:
            raise Disagreement(f"msgpack accepts what we reject: {error.detail}") from None
        raise
    if (reason := refusal(body)) is not None:
        raise Disagreement(f"msgpack rejects what we accept: {reason!r}")


def refusal(body: bytes) -> Exception | None:
    """Return why `msgpack` rejects a value; None if it accepts it. Values such as times are not interpreted."""
    # Its compiled parser skips 2^32 - 1 missing bytes without an error.
    unpacker = Unpacker(max_buffer_size=0)
    unpacker.feed(body)
    try:
        unpacker.skip()
    except Exception as error:
        return error
    rest = len(body) - unpacker.tell()
    return ValueError(f"{rest} bytes are left") if rest else None


_APPEND_PATH = re.compile(r"/sessions/([^/]+)/kv")


def append_path(body: bytes) -> None:
    """Check that the dispatcher and FastAPI's routes find the same session in the path of an append."""
    session = appended_session({"type": "http", "method": "POST", "raw_path": body})
    if session is None:
        raise InvalidRequest([("path", "is left to FastAPI")])
    routed = _APPEND_PATH.fullmatch(unquote(body.decode("latin-1")))
    if routed is None or routed[1] != session:
        raise Disagreement(f"the dispatcher finds {session!r}, the routes find {routed and routed[1]!r}")
    check_session_id(session)


class _Bytes:
    """A file as a stream of bytes."""

    def __init__(self, body: bytes) -> None:
        self._file = io.BytesIO(body)

    async def read_into(self, buffer: memoryview) -> int:
        """Copy the next bytes, seldom all that fit."""
        return self._file.readinto(buffer[:1000])


def file(body: bytes) -> None:
    """Check that `safetensors` accepts every session file that we accept, and that a digest is right."""
    header, names = asyncio.run(_read_file(body))
    try:
        theirs = dict(safetensors.deserialize(body))
    except safetensors.SafetensorError as error:
        raise Disagreement(f"safetensors rejects what we accept: {error}") from None
    if theirs.keys() != names:
        raise Disagreement("safetensors finds different tensors")
    if header.offsets is None and bytes(theirs["digest"]["data"]) != hashlib.sha256(body[:-32]).digest():
        raise Disagreement("a file with a wrong digest is accepted")


async def _read_file(body: bytes) -> tuple[FileHeader, set[str]]:
    """Read a file as an import does. Return its header, and the names of its tensors."""
    reader = HashingReader(_Bytes(body))
    header = await read_header(reader, len(body), lambda _: None)
    if header.offsets is not None:
        spool = MemorySpool(lambda _: None)
        pages: PageReader = LayeredReader(header, reader, spool)
        names = set(header.offsets)
    else:
        pages = PagedReader(header, reader)
        names = {part.name for part in layout.page_parts(header.session, header.paged_spans)}
    async for _ in pages.pages():
        pass
    return header, names


Target = Callable[[bytes], None]
TARGETS: list[Target] = [
    append,
    session,
    truncate,
    fork,
    encode,
    decode,
    well_formed,
    append_path,
    lambda body: session(body, json=True),
    lambda body: truncate(body, json=True),
    lambda body: fork(body, json=True),
    file,
]
JSON_KINDS, FILE_KIND = range(8, 11), 11
_PACKED: list[tuple[int, Any]] = [
    (0, append_body(K, K, layer=0, position=0, codec={"k": {"bits": 4}, "v": {"bits": 4}})),
    (0, append_body(K[0], K[0], codec={"bits": 8, "rotation": "none", "layout": "byte", "kind": "float16"})),
    (1, {"codec": {"bits": 4}, "layers": 2, "kv_heads": 2, "head_dim": 64, "window": 5, "ttl_seconds": 60.5}),
    (1, {"durability": "ack", "codec": {"codebook": "lloyd-max", "norm": "unbiased", "d512_scale": 1.5}}),
    (2, {"length": 300}),
    (3, {"id": "chat-1", "length": None}),
    (4, {"x": tensor(K), "codec": {"bits": 3, "norm": "unbiased"}, "diagnostics": True}),
    (5, {"packed": ROWS, "norms": NORMS, "codec": {"bits": 4}, "head_dim": 64, "form": "rotated"}),
    (5, {"values": tensor(K), "codec": {"kind": "float16"}, "head_dim": 64, "form": "bfloat16"}),
    (6, [1, -1, 1.5, "x", b"y", None, True, {"a": [{}]}, 2**63, msgpack.ExtType(5, b"z"), msgpack.Timestamp(1, 2)]),
]


SEEDS = [
    *(bytes([kind]) + msgpack.packb(value) for kind, value in _PACKED),
    b"\x07/sessions/chat-1/kv",
    b"\x07/sessions/..%2f/kv",
    b'\x08{"codec": {"k": {"bits": 4}, "v": {"bits": 8}}, "layers": 2, "window": 7, "ttl_seconds": 1e3}',
    b'\x09{"length": 12}',
    b'\x0a{"id": "a.b_c:d-e", "length": 0}',
    *(b"\x0b" + values.exported_session(random.Random(seed)) for seed in range(6)),
]


def outcome(data: bytes) -> str:
    """Return "understood", or the slug of the error that rejects an input.

    Raises:
        Exception: an unexpected failure.
    """
    if not data:
        return ""
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except ServiceError as error:
        if error.status >= 500 or not error.detail:
            raise
        return error.slug
    return "understood"


JSON_PARTS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b"null",
    b"NaN",
    b"-",
    b"1e400",
    b"9" * 400,
    b"\\ud800",
    b"\\u0000",
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Mutate an input by its structure."""
    kind, body = data[:1] or b"\0", data[1:]
    if rng.random() < 0.05:
        kind = bytes([rng.randrange(len(TARGETS))])
    if kind[0] % len(TARGETS) in JSON_KINDS and rng.random() < 0.5:
        return kind + _with_part(rng, body)
    if kind[0] % len(TARGETS) == FILE_KIND and rng.random() < 0.7:
        return kind + _with_other_header(rng, body)
    # Most mutations destroy the structure. Only those that keep it get past the first check.
    mutation = rng.choice([replace_value, reshape, odd_tensor] if rng.random() < 0.6 else MUTATIONS)
    try:
        return kind + mutation(rng, body)
    except Exception:
        return kind + body[: rng.randrange(len(body) + 1)]  # the body has lost its structure


def _with_part(rng: random.Random, text: bytes) -> bytes:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice([*JSON_PARTS, b"%d" % rng.randrange(300)]) + text[at + rng.randrange(3) :]


def _with_other_header(rng: random.Random, body: bytes) -> bytes:
    """Return a file with a mutated header and a matching header length."""
    stop = 8 + int.from_bytes(body[:8], "little")
    header = rng.choice([_with_part, flip_bytes])(rng, body[8:stop] or b"{}")
    changed = len(header).to_bytes(8, "little") + header + body[stop:]
    # Otherwise the digest would reject every change of a file of version 2.
    return sealed(changed) if rng.random() < 0.8 and len(changed) > DIGEST_NBYTES else changed
