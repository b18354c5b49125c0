"""Complete HTTP requests in which any part may be odd: path, query, headers, msgpack, JSON."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgpack

from fuzzing import values
from support.contract import JSON, MSGPACK, Json
from support.inputs.mutated_bodies import MUTATIONS, VALID, replace_value

BODIES: dict[str, Json] = {
    **VALID,
    "POST /sessions/fuzz{}/truncate": {"length": 1},
    "POST /sessions/fuzz{}/fork": {"id": "fork1", "length": 2},
}
READS = [
    "GET /sessions/fuzz{}/kv",
    "GET /sessions/fuzz{}",
    "GET /sessions/put{}",
    "DELETE /sessions/fuzz{}",
    "DELETE /sessions/put{}",
    "GET /sessions",
    "GET /readyz",
]


@dataclass(slots=True)
class Call:
    """HTTP request.

    Attributes:
        chunks: chunks of a body that is sent without Content-Length.
        how: description of the changes made.
    """

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    chunks: list[bytes] | None = None
    how: str = "as it is"

    def __str__(self) -> str:
        sent = b"".join(self.chunks or ()) if self.body is None else self.body
        return f"{self.how}: {self.method} {self.path[:200]} {self.headers} {len(sent)} bytes {sent[:200].hex()}"


def made(rng: random.Random) -> Call:
    """Return a request, mostly with an odd part."""
    if rng.random() < 0.25:
        method, path = rng.choice(READS).format(rng.randrange(20)).split(" ")
        call = Call(method, path)
    else:
        name, body = rng.choice(list(BODIES.items()))
        method, path = name.format(rng.randrange(20)).split(" ")
        call = Call(method, path, {"Content-Type": MSGPACK}, _packed(rng, name, body))
    if rng.random() < 0.3:
        call.headers["Accept"] = MSGPACK
    for _ in range(rng.choice([0, 1, 1, 2])):
        rng.choice(ODDITIES)(rng, call)
    return call


def _packed(rng: random.Random, name: str, body: Json) -> bytes:
    if "/kv" in name and rng.random() < 0.5:
        return bytes(msgpack.packb(values.append(rng, rng.choice(values.SESSIONS))))
    return bytes(msgpack.packb(body))


def odd_tensor(rng: random.Random, body: bytes) -> bytes:
    """Let dtype, shape and data of one tensor disagree slightly."""
    value = msgpack.unpackb(body)
    tensors = [inner for inner in value.values() if isinstance(inner, dict)]
    whole = [each for each in tensors if isinstance(each.get("data"), bytes) and isinstance(each.get("shape"), list)]
    tensor = rng.choice(whole)
    data, shape = tensor["data"], tensor["shape"]
    match rng.randrange(4):
        case 0:
            tensor["data"] = rng.choice([data[:-1], data + b"\0", data[: len(data) // 2], data * 2])
        case 1:
            tensor["dtype"] = rng.choice(["float32", "float16", "bfloat16", "uint8", "int8"])
        case 2:
            shape[rng.randrange(len(shape))] += rng.choice([-1, 1, 64])
        case _:
            tensor["shape"] = rng.choice([shape[::-1], [*shape, 1], shape[1:], [1, *shape]])
    return bytes(msgpack.packb(value))


def odd_body(rng: random.Random, call: Call) -> None:
    if call.body:
        mutation = rng.choice([*MUTATIONS, odd_tensor, odd_tensor, replace_value, replace_value])
        try:
            call.body = mutation(rng, call.body)
        except (ValueError, TypeError, msgpack.UnpackException, AttributeError, IndexError):
            call.body = rng.randbytes(20)  # the body had been mutated before
        call.how += f", {mutation.__name__}"


ODD_JSON = [
    b"",
    b"nul",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b'{"length": 1e999}',
    b'{"length": -0.0}',
    b'{"length": 1' + b"0" * 5000 + b"}",
    b'{"length": 1.5, "length": 2}',
    b'{"id": "\\ud800"}',
    b'{"id": "\\u0000", "length": NaN}',
    b"[" * 100_000,
    b'{"codec":' * 50_000,
    b'{"codec": {"d512_scale": 1e-400}}',
    b'{"kv_heads": 65536, "head_dim": 512, "layers": 1024}',
]


# Invalid or extreme numbers in JSON or msgpack.
ODD_NUMBERS = ["-1", "0", "0.1", "1e400", "9007199254740993", str(1 << 63), str(1 << 64), "1" + "0" * 30, "9" * 400]
FIELDS = ["length", "window", "layers", "kv_heads", "head_dim", "ttl_seconds"]


def odd_json(rng: random.Random, call: Call) -> None:
    """Replace msgpack by JSON, whether the route reads JSON or not."""
    if call.body is None:
        return
    call.headers["Content-Type"] = rng.choice([JSON, JSON, f"{JSON}; charset=utf-8", f"{JSON};charset=utf-16"])
    match rng.randrange(3):
        case 0:
            call.body = rng.choice(ODD_JSON)
        case 1:
            call.body = f'{{"{rng.choice(FIELDS)}": {rng.choice(ODD_NUMBERS)}}}'.encode()
        case _:
            valid = json.dumps(rng.choice([{"length": 3}, {"id": "f"}, {"codec": {"bits": 3}, "window": 4}])).encode()
            at, put = rng.randrange(len(valid)), rng.choice([b"", b"\xff", b"\\u", b"9" * 400, b"{", b"}"])
            call.body = valid[:at] + put + valid[at + rng.randrange(3) :]
    call.how += ", odd JSON"


ODD_HEADERS: list[tuple[str, list[str]]] = [
    (
        "Content-Type",
        ["", MSGPACK.upper(), f"{MSGPACK}; a=b", "application/x-msgpack", "text/plain", ";", "\xff", JSON],
    ),
    ("Accept", ["", "*/*", MSGPACK, "application/x-msgpack;q=0", "\xff", "," * 5000, JSON]),
    ("Prefer", ["return=minimal", "RETURN = MINIMAL", "return=minimal, wait=10", "", "\xff\xfe", "x" * 5000]),
    ("Authorization", ["Bearer", "Bearer \xff", "Basic eA==", ""]),
    ("Content-Encoding", ["gzip", "identity", "br, gzip"]),
    ("Expect", ["100-continue", "200-ok"]),
    ("Range", ["bytes=0-1", "bytes=,"]),
    ("Cookie", ["a=b; " * 500]),
    ("Origin", ["null", "http://localhost"]),
    ("X-Forwarded-For", ["1.2.3.4", "\xff"]),
    ("X-HTTP-Method-Override", ["DELETE"]),
]


def odd_header(rng: random.Random, call: Call) -> None:
    name, choices = rng.choice(ODD_HEADERS)
    call.headers[name] = rng.choice(choices)
    call.how += f", {name}"


def without_length(rng: random.Random, call: Call) -> None:
    if call.body is not None:
        cuts = sorted(rng.randrange(len(call.body) + 1) for _ in range(rng.randint(0, 4)))
        call.chunks = [call.body[a:b] for a, b in zip([0, *cuts], [*cuts, len(call.body)], strict=True)]
        call.body = None
        call.how += ", in chunks"


SEGMENTS = [
    "..",
    ".",
    "%2e%2e",
    "%2f",
    "%00",
    "%ff",
    "%F0%9F%92%A9",
    "x" * 128,
    "x" * 129,
    "x" * 9000,
    "%",
    "%zz",
    ":",
    "",
]


def odd_path(rng: random.Random, call: Call) -> None:
    parts = call.path.split("/")
    parts[rng.randrange(1, len(parts))] = rng.choice(SEGMENTS)
    call.path = "/".join(parts) + rng.choice(["", "", "/", "//", ";a=b"])
    call.how += ", odd path"


NUMBERS = [
    "",
    "0",
    "1",
    "-1",
    "1.0",
    "1e3",
    "\u0663",
    "0x1",
    "9" * 19,
    "9" * 5000,
    "None",
    "true",
    "%00",
    "%ff",
    "+1",
    "1_0",
]
QUERIES = {
    "start": NUMBERS,
    "stop": NUMBERS,
    "limit": [*NUMBERS, "1000", "1001"],
    "layers": [
        "0:1",
        "1:0",
        "0:0",
        "0:999999",
        ":",
        "a:b",
        "0:1:2",
        "\u0660:\u0661",
        "0:%00",
        "1" * 400 + ":2",
        "-1:2",
    ],
    "form": ["packed", "float32", "float16", "bfloat16", "rotated", "", "int8", "PACKED"],
    "layout": ["linear", "ring", "", "square"],
    "prefix": ["", "fuzz", "%00", "%ff", "%F0%9F%92%A9", "x" * 5000, "'", "%25", "_"],
    "after": ["", "fuzz1", "%00", "%ff", "%ED%A0%80", "~", "'--"],
    "q": ["1"],
}


def odd_query(rng: random.Random, call: Call) -> None:
    names = [rng.choice(list(QUERIES)) for _ in range(rng.randint(1, 4))]
    pairs = [f"{name}={rng.choice(QUERIES[name])}" for name in names]
    text = rng.choice(["&", "&", "&", ";", "&&"]).join(pairs)
    call.path += "?" + "".join(c if ord(c) < 128 else "".join(f"%{byte:02x}" for byte in c.encode()) for c in text)
    call.how += ", odd query"


def other_method(rng: random.Random, call: Call) -> None:
    call.method = rng.choice(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "LINK"])
    call.how += f", {call.method}"


ODDITIES: list[Callable[[random.Random, Call], None]] = [
    odd_body,
    odd_body,
    odd_json,
    odd_header,
    without_length,
    odd_path,
    odd_query,
    odd_query,
    other_method,
]
