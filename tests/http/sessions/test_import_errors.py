"""Files of version 1 that cannot be imported are rejected with a reason, and nothing is stored."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hadakv_service.device.batch import CHUNKED_JOB_NBYTES
from hadakv_service.operations.files.layout import MAX_HEADER_NBYTES
from hadakv_service.testing import running_service
from support.assertions import assert_names_field
from support.contract import JSON, MSGPACK, Caller, Json
from support.inputs import session_files
from support.inputs.arrays import pair
from support.inputs.session_files import (
    METADATA,
    OCTETS,
    as_version_1,
    imported,
    put_together,
    taken_apart,
    tensors,
    with_metadata,
    with_tensor,
)

Change = Callable[[bytes], bytes]


def exported(caller: Caller, session: str) -> bytes:
    """Export a session as a file of version 1."""
    return as_version_1(session_files.exported(caller, session))


@pytest.fixture(scope="module")
def strict() -> Iterator[Caller]:
    """Client of a service that only this module uses, with a few sessions."""
    with running_service("--memory-budget", "8MiB", "--max-body", "4MiB") as service, Caller(service.url) as caller:
        codec = {"k": {"bits": 3, "layout": "byte"}, "v": {"kind": "float16"}}
        caller.append("original", *pair(2, 2, 5), codec=codec)
        caller.append("original", *pair(1, 2, 0), layer=2)
        caller.append("original", *pair(1, 2, 3), layer=3)
        caller.append("dense", *pair(1, 1, 3, 512))
        caller.put("/sessions/windowed", {"window": 300})
        caller.append("windowed", *pair(1, 1, 600))
        yield caller


@pytest.fixture(autouse=True)
def _nothing_changes(strict: Caller) -> Iterator[None]:
    """Check that the sessions and the bytes they use are the same after the block."""
    before = strict.used_nbytes(), names(strict)
    yield
    assert (strict.used_nbytes(), names(strict)) == before


def names(caller: Caller) -> list[str]:
    return [session["session"] for session in caller.get("/sessions").body["sessions"]]


def with_header(change: Callable[[Json], Any]) -> Change:
    """Return a change of the header. `change` edits it in place or returns another one."""

    def changed(file: bytes) -> bytes:
        header, data = taken_apart(file)
        replacement = change(header)
        return put_together(header if replacement is None else replacement, data)

    return changed


def says(**changes: Any) -> Change:
    """Return a change of the metadata."""
    return lambda file: with_metadata(file, **changes)


def says_of(tensor: str, **changes: Any) -> Change:
    """Return a change of a tensor's record in the header."""
    return with_header(lambda header: header[tensor].update(changes))


def shifted(tensor: str, begin: int, end: int) -> Change:
    """Return a change of a tensor's offsets."""

    def change(header: Json) -> None:
        old = header[tensor]["data_offsets"]
        header[tensor]["data_offsets"] = [old[0] + begin, old[1] + end]

    return with_header(change)


def with_element(file: bytes, tensor: str, place: tuple[int, ...], value: float) -> bytes:
    """Return a change of one element of a tensor."""
    array = tensors(file)[tensor].copy()
    array[place] = value
    return with_tensor(file, tensor, array)


RUNS = [{"layers": 2, "base": 0, "length": 5}, {"layers": 1, "base": 0, "length": 0}]
RUNS += [{"layers": 1, "base": 0, "length": 3}]


def runs(*changes: Json) -> Change:
    """Return a change of the first runs in the metadata."""
    return says(runs=[run | change for run, change in zip(RUNS, (*changes, {}, {}, {}), strict=False)])


NO_FILE: dict[str, Change] = {
    "nothing": lambda _: b"",
    "seven bytes": lambda file: file[:7],
    "a length and nothing else": lambda file: file[:8],
    "a header cut short": lambda file: file[:100],
    "tensors cut short": lambda file: file[:-1],
    "no tensors where there should be": lambda file: file[: 8 + int.from_bytes(file[:8], "little")],
    "bytes after the end": lambda file: file + b"\0",
    "a header of all bytes there can be": lambda file: b"\xff" * 8 + file[8:],
    "a header beyond the largest": lambda file: put_together(b"{}" + b" " * MAX_HEADER_NBYTES, taken_apart(file)[1]),
    "a header that ends before its end": lambda file: (
        (int.from_bytes(file[:8], "little") - 8).to_bytes(8, "little") + file[8:]
    ),
    "a length of the header in big-endian": lambda file: file[:8][::-1] + file[8:],
    "a header of zero bytes": lambda file: bytes(8) + file[8:],
    "a header that is no JSON": with_header(lambda _: b"no JSON"),
    "a header that is no object": with_header(lambda _: b"[1, 2]"),
    "a header that is null": with_header(lambda _: b"null"),
    "a header that is no text": with_header(lambda _: b'{"\xff": 1}'),
    "a header with a byte order mark": with_header(lambda header: b"\xef\xbb\xbf" + json.dumps(header).encode()),
    "half a character": with_header(lambda header: json.dumps(header | {"\ud800": {}}).encode()),
    "a header that goes on": with_header(lambda header: json.dumps(header).encode() + b"{}"),
    "a number that is none": with_header(lambda header: json.dumps(header | {"x": float("nan")}).encode()),
    "a number beyond all numbers": with_header(lambda header: json.dumps(header)[:-1].encode() + b', "x": 1e999}'),
    "a number of very many digits": with_header(
        lambda header: json.dumps(header)[:-1].encode() + b', "x": ' + b"9" * 10_000 + b"}"
    ),
    "a header nested too deep": with_header(lambda _: b'{"__metadata__":' + b"[" * 100_000),
    "a tensor twice": with_header(
        lambda header: (
            json.dumps(header)[:-1].encode()
            + b', "layers.0.k.packed": '
            + json.dumps(header["layers.0.k.packed"]).encode()
            + b"}"
        )
    ),
    "a key twice, once in disguise": with_header(
        lambda header: json.dumps(header)[:-1].encode() + rb', "layers.0.k.p\u0061cked": {}}'
    ),
    "a msgpack body": lambda _: b"\x81\xa1k\xc0",
    "a pickle": lambda _: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.",
    "a zip": lambda _: b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("change", NO_FILE.values(), ids=NO_FILE)
def test_incomplete_file_is_malformed(strict: Caller, change: Change) -> None:
    rejected = imported(strict, "new", change(exported(strict, "original")))

    assert rejected.problem(400, "malformed-body")["detail"]


# Change, field, part of the reason.
LIES: dict[str, tuple[Change, str, str]] = {
    # Format and version
    "no metadata": (with_header(lambda header: header.pop(METADATA) and None), METADATA, "not a hadakv export"),
    "metadata that are no object": (with_header(lambda header: header.update({METADATA: [1]})), METADATA, "object"),
    "metadata that are no strings": (
        with_header(lambda header: header[METADATA].update(kv_heads=2)),
        METADATA,
        "Expected `str`",
    ),
    "no format": (says(format=None), "format", "is missing: not a hadakv export"),
    "another format": (says(format="pt"), "format", "not 'pt': not a hadakv export"),
    "no version": (says(version=None), "version", "is missing"),
    "a later version": (
        says(version="3"),
        "version",
        "must be 1 or 2, not '3': the file was written by another version of hadakv",
    ),
    "no fingerprint": (says(tables=None), "tables", "is missing"),
    "other tables": (says(tables="00" * 32), "tables", "the codec tables of another version of hadakv"),
    "no session": (says(session=None), "session", "is missing"),
    "a session that cannot be": (says(session="../etc"), "session", "1 to 128"),
    "no time": (says(created=None), "created", "is missing"),
    "a time that is none": (says(created="yesterday"), "created", "RFC3339"),
    "an unknown field": (says(colour="red"), "colour", "not known"),
    # Session fields
    "no codec": (says(codec=None), "codec", "is missing"),
    "a codec that is no JSON": (says(codec="{"), "codec", "is not valid JSON"),
    "a codec with a key twice": (says(codec='{"k":{},"k":{},"v":{}}'), "codec", "a duplicate key"),
    "an unknown codec": (says(codec={"k": {"bits": 7}, "v": {}}), "codec.k.bits", "must be one of"),
    "an unknown option": (says(codec={"k": {"bytes": 7}, "v": {}}), "codec.k.bytes", "not known"),
    "a scale that is none": (says(codec={"d512_scale": -1.0}), "codec.d512_scale", "positive"),
    "no heads": (says(kv_heads=None), "kv_heads", "is missing, though there are layers"),
    "zero heads": (says(kv_heads=0), "kv_heads", ">= 1"),
    "heads beyond all numbers": (says(kv_heads=2**63), "kv_heads", "<="),
    "heads in text": (says(kv_heads='"2"'), "kv_heads", "Expected `int"),
    "a truth for heads": (says(kv_heads="true"), "kv_heads", "Expected `int"),
    "no head_dim": (says(head_dim=None), "head_dim", "is missing, though there are layers"),
    "a head_dim there is not": (says(head_dim=96), "head_dim", "must be one of"),
    "a window of nothing": (says(window=0), "window", ">= 1"),
    "a negative window": (says(window=-5), "window", ">= 1"),
    "a ttl of nothing": (says(ttl_seconds=0), "ttl_seconds", "> 0"),
    "an endless ttl": (says(ttl_seconds=1e300), "ttl_seconds", "<="),
    "fewer layers than there are": (says(declared_layers=3), "runs", "have 4 layers, the maximum is 3"),
    "more layers than there may be": (says(declared_layers=1025), "declared_layers", "<= 1024"),
    # Runs
    "no runs": (says(runs=None), "runs", "is missing"),
    "runs that are no list": (says(runs={}), "runs", "array"),
    "a run of no layers": (runs({"layers": 0}), "runs[0].layers", ">= 1"),
    "a run of too many layers": (runs({"layers": 1023}), "runs", "the maximum is 1024"),
    "a run without a length": (says(runs=[{"layers": 1, "base": 0}]), "runs[0].length", "is missing"),
    "a run that knows more": (runs({"pages": 1}), "runs[0].pages", "not known"),
    "a negative base": (runs({"base": -1}), "runs[0].base", ">= 0"),
    "a base without a window": (runs({"base": 1}), "runs[0].base", "must be 0 in a session without a window"),
    "a base beyond the length": (runs({"base": 6}), "runs[0].base", "must not be beyond the length 5"),
    "a length beyond all tokens": (runs({"length": 2**60}), "runs[0].length", "<="),
    "a length that is no number": (runs({"length": 5.5}), "runs[0].length", "Expected `int"),
    # Tensors
    "a layer fewer than there are tensors of": (says(runs=RUNS[:2]), "header", "'layers.3.k.norms'"),
    "a layer more than there are tensors of": (says(runs=[*RUNS, RUNS[1]]), "layers.4.k.packed", "is missing"),
    "a token more": (runs({"length": 6}), "layers.0.k.packed.shape", "must be [2, 6, 64], not [2, 5, 64]"),
    "a token fewer": (runs({}, {}, {"length": 2}), "layers.3.k.packed.shape", "must be [2, 2, 64], not [2, 3, 64]"),
    "a gap with tokens": (runs({"gap": True}), "runs[0].gap", "the run has tokens"),
    "a gap that is no boolean": (runs({"gap": 1}), "runs[0].gap", "Expected `bool`"),
    "tokens where there are none": (runs({}, {"length": 1}), "layers.2.k.packed.shape", "must be [2, 1, 64]"),
    "a head more": (says(kv_heads=3), "layers.0.k.packed.shape", "must be [3, 5, 64], not [2, 5, 64]"),
    "another head_dim": (says(head_dim=128), "layers.0.k.packed.shape", "must be [2, 5, 128], not [2, 5, 64]"),
    "another kind": (says(codec={"layout": "byte"}), "layers.0.v.packed", "is missing"),
    "another layout": (
        says(codec={"k": {"bits": 3}, "v": {"kind": "float16"}}),
        "layers.0.k.packed.shape",
        "must be [2, 5, 24], not [2, 5, 64]",
    ),
    "a tensor that is missing": (
        with_header(lambda header: header.pop("layers.1.v.values") and None),
        "layers.1.v.values",
        "is missing",
    ),
    "an unexpected tensor": (
        with_header(lambda header: header.update({"layers.9\n": {}})),
        "header",
        r"has a tensor 'layers.9\n' of a layer that the session does not have",
    ),
    "a tensor that is a number": (
        with_header(lambda header: header.update({"layers.0.k.packed": 5})),
        "layers.0.k.packed",
        "Expected `object`",
    ),
    "a tensor without a dtype": (
        with_header(lambda header: header["layers.0.k.packed"].pop("dtype") and None),
        "layers.0.k.packed.dtype",
        "is missing",
    ),
    "a tensor that knows more": (says_of("layers.0.k.norms", device="cpu"), "layers.0.k.norms.device", "not known"),
    "another dtype of the same size": (
        says_of("layers.0.k.norms", dtype="I32"),
        "layers.0.k.norms.dtype",
        "must be F32",
    ),
    "another dtype": (says_of("layers.0.v.values", dtype="BF16"), "layers.0.v.values.dtype", "must be F16, not 'BF16'"),
    "a dtype that is no text": (says_of("layers.0.v.values", dtype=16), "layers.0.v.values.dtype", "Expected `str`"),
    "another shape of the same size": (
        says_of("layers.0.k.packed", shape=[5, 2, 64]),
        "layers.0.k.packed.shape",
        "must be [2, 5, 64], not [5, 2, 64]",
    ),
    "an axis more": (says_of("layers.0.k.packed", shape=[1, 2, 5, 64]), "layers.0.k.packed.shape", "not [1, 2, 5, 64]"),
    "no axes": (says_of("layers.0.k.packed", shape=[]), "layers.0.k.packed.shape", "not []"),
    "a thousand axes": (says_of("layers.0.k.packed", shape=[1] * 1000), "layers.0.k.packed.shape", "not [1, 1,"),
    "a negative axis": (says_of("layers.0.k.packed", shape=[-2, -5, 64]), "layers.0.k.packed.shape[0]", ">= 0"),
    "axes whose product overflows": (
        says_of("layers.0.k.packed", shape=[2**32, 2**32, 64]),
        "layers.0.k.packed.shape",
        "must be [2, 5, 64]",
    ),
    "an axis beyond all numbers": (
        says_of("layers.0.k.packed", shape=[2, 5, 2**70]),
        "layers.0.k.packed.shape",
        "must be [2, 5, 64]",
    ),
    "a shape that is no list": (says_of("layers.0.k.packed", shape="2"), "layers.0.k.packed.shape", "array"),
    # Offsets
    "offsets the wrong way round": (
        says_of("layers.0.k.packed", data_offsets=[640, 0]),
        "layers.0.k.packed.data_offsets",
        "640 bytes apart, not -640",
    ),
    "an offset fewer": (says_of("layers.0.k.packed", data_offsets=[0]), "layers.0.k.packed.data_offsets", "length 2"),
    "an offset more": (
        says_of("layers.0.k.packed", data_offsets=[0, 640, 640]),
        "layers.0.k.packed.data_offsets",
        "length 2",
    ),
    "a negative offset": (
        says_of("layers.0.k.packed", data_offsets=[-640, 0]),
        "layers.0.k.packed.data_offsets[0]",
        ">= 0",
    ),
    "an offset in halves": (
        says_of("layers.0.k.packed", data_offsets=[0.5, 640.5]),
        "layers.0.k.packed.data_offsets[0]",
        "Expected `int",
    ),
    "more bytes than the shape says": (shifted("layers.0.k.packed", 0, 1), "layers.0.k.packed.data_offsets", "not 641"),
    "fewer bytes than the shape says": (
        shifted("layers.0.k.packed", 1, 0),
        "layers.0.k.packed.data_offsets",
        "not 639",
    ),
    "an overlap": (shifted("layers.0.k.norms", -8, -8), "layers.0.k.norms.data_offsets", "must begin at 640, "),
    "a gap": (shifted("layers.0.k.norms", 8, 8), "layers.0.k.norms.data_offsets", "must begin at 640, "),
    "a gap at the start": (shifted("layers.0.k.packed", 1, 1), "layers.0.k.packed.data_offsets", "must begin at 0, "),
    "two tensors in one place": (
        says_of("layers.1.k.packed", data_offsets=[0, 640]),
        "layers.1.k.packed.data_offsets",
        "must begin at 640, the end of the previous tensor, not at 0",
    ),
    "an offset beyond the end": (
        shifted("layers.3.v.values", 2**40, 2**40),
        "layers.3.v.values.data_offsets",
        "must begin at",
    ),
}


@pytest.mark.parametrize(("change", "field", "reason"), LIES.values(), ids=LIES)
def test_inconsistent_file_is_rejected_by_field(strict: Caller, change: Change, field: str, reason: str) -> None:
    rejected = imported(strict, "new", change(exported(strict, "original")))

    errors = rejected.problem(422, "invalid-request")["errors"]
    named = {f"{METADATA}.{field}", field}
    assert errors[0]["field"] in named, errors
    assert reason in errors[0]["reason"], errors


@pytest.mark.parametrize(
    ("base", "length", "reason"),
    [
        (255, 600, "must be a multiple of 256"),
        (1, 600, "must be a multiple of 256"),
        (0, 600, "is more than 256 tokens before those of the window, which begins at 300"),
        (768, 600, "must not be beyond the length 600"),
    ],
)
def test_window_with_impossible_start_is_rejected(strict: Caller, base: int, length: int, reason: str) -> None:
    file = exported(strict, "windowed")

    rejected = imported(strict, "new", with_metadata(file, runs=[{"layers": 1, "base": base, "length": length}]))

    assert_names_field(rejected, f"{METADATA}.runs[0].base")
    assert reason in rejected.body["detail"]


# Session, tensor, index, value.
ELEMENTS: dict[str, tuple[str, str, tuple[int, int, int], float]] = {
    "a norm that is no number": ("original", "layers.1.k.norms", (1, 4, 0), np.nan),
    "an infinite norm": ("original", "layers.0.k.norms", (0, 0, 0), np.inf),
    "a negative norm": ("original", "layers.3.k.norms", (0, 2, 0), -1e-30),
    "a second norm that is no number": ("dense", "layers.0.v.norms", (0, 1, 1), np.nan),
    "an infinite value": ("original", "layers.1.v.values", (1, 0, 63), -np.inf),
    "a value that is no number": ("original", "layers.3.v.values", (0, 2, 0), np.nan),
    "an index beyond the table": ("original", "layers.1.k.packed", (0, 3, 17), 8),
    "a byte of ones": ("original", "layers.0.k.packed", (1, 4, 63), 255),
    "a norm on a later page": ("windowed", "layers.0.v.norms", (0, 340, 0), np.nan),
}


@pytest.mark.parametrize(("session", "tensor", "place", "value"), ELEMENTS.values(), ids=ELEMENTS)
def test_value_that_no_codec_produces_is_rejected(
    strict: Caller, session: str, tensor: str, place: tuple[int, int, int], value: float
) -> None:
    rejected = imported(strict, "new", with_element(exported(strict, session), tensor, place, value))

    assert_names_field(rejected, tensor)
    assert f"at head {place[0]}, token {place[1]}; nothing was stored" in rejected.body["detail"]


def test_error_at_the_end_of_a_large_file_rolls_it_back() -> None:
    # Large enough to be imported in chunks.
    with running_service("--memory-budget", "64MiB") as service, Caller(service.url) as caller:
        caller.append("large", *pair(2, 4, 4000, 64), codec={"kind": "float16"})
        before = caller.used_nbytes()
        file = with_element(exported(caller, "large"), "layers.1.v.values", (3, 3999, 63), np.nan)

        rejected = imported(caller, "new", file)

        assert len(file) > CHUNKED_JOB_NBYTES
        assert_names_field(rejected, "layers.1.v.values")
        assert (caller.used_nbytes(), names(caller)) == (before, ["large"])


def test_import_never_replaces_a_session(strict: Caller) -> None:
    file = exported(strict, "original")
    before = strict.snapshot("dense")

    for taken in ("dense", "original"):
        assert imported(strict, taken, file).problem(409, "session-exists")["field"] == "id"

    assert strict.snapshot("dense") == before


def test_import_over_budget_is_rejected_and_evicts_nothing() -> None:
    with running_service("--memory-budget", "4MiB") as service, Caller(service.url) as caller:
        caller.append("first", *pair(1, 2, 6000, 64), codec={"kind": "float16"})
        file = exported(caller, "first")
        caller.delete("/sessions/first")
        caller.append("kept", *pair(1, 2, 100, 64))
        with running_service("--memory-budget", "1MiB") as small, Caller(small.url) as other:
            other.append("kept", *pair(1, 2, 100, 64))
            before = other.used_nbytes(), names(other)

            rejected = imported(other, "first", file)

            problem = rejected.problem(507, "insufficient-storage")
            assert problem["needed"] > problem["budget"] == 1 << 20
            assert (other.used_nbytes(), names(other)) == before
        # A file that fits after evictions does evict.
        assert imported(caller, "first", file).status == 201
        assert imported(caller, "second", file).status == 201
        assert names(caller) == ["second"]


def test_version_1_file_above_max_body_is_rejected_without_a_disk(strict: Caller) -> None:
    with running_service("--memory-budget", "64MiB") as service, Caller(service.url) as caller:
        caller.append("large", *pair(2, 2, 4100, 64), codec={"kind": "float16"})
        file = exported(caller, "large")

    rejected = imported(strict, "new", file)

    assert rejected.problem(413, "body-too-large")["limit"] == 4 << 20


@pytest.mark.parametrize("kind", [MSGPACK, JSON, "application/x-www-form-urlencoded", "text/plain", ""])
def test_import_needs_the_octet_stream_content_type(strict: Caller, kind: str) -> None:
    rejected = strict.send("POST", "/sessions/new/import", exported(strict, "original"), kind)

    assert OCTETS in rejected.problem(415, "unsupported-media-type")["detail"]


@pytest.mark.parametrize("id_", ["a%2fb", "%20", "a" * 129, "%2e%2e"])
def test_import_with_an_invalid_id_is_rejected(strict: Caller, id_: str) -> None:
    assert_names_field(imported(strict, id_, exported(strict, "original")), "id")


def test_import_with_other_methods_is_not_allowed(strict: Caller) -> None:
    assert strict.get("/sessions/original/import").problem(405, "method-not-allowed")
    assert strict.put("/sessions/original/export", {}).headers["allow"] == "GET, HEAD"
