"""Imported sessions equal the exported ones, byte for byte, and behave the same afterwards."""

import itertools
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hadakv_kernels import BITS, HEAD_DIMS, Codec
from hadakv_service.device.batch import CHUNKED_JOB_NBYTES
from support.contract import MSGPACK, Caller, Json
from support.inputs.arrays import CODECS, TTL_SECONDS, pair
from support.inputs.session_files import (
    METADATA,
    as_version_1,
    exported,
    imported,
    metadata_of,
    put_together,
    sealed,
    taken_apart,
    tensors,
    without_digest,
)

codecs = st.builds(
    Codec,
    bits=st.sampled_from(BITS),
    rotation=st.sampled_from(["hadamard", "none"]),
    layout=st.sampled_from(["dense", "byte"]),
    codebook=st.sampled_from(["mlx-native", "lloyd-max"]),
    norm=st.sampled_from(["exact", "unbiased"]),
    kind=st.sampled_from(["quantized", "quantized", "float16"]),
    d512_scale=st.sampled_from([1.0, 1.0, 0.3]),
)


@dataclass(frozen=True)
class History:
    """The way to create a session.

    Attributes:
        appends: first layer, layers, tokens; those that would not be at a common end are rejected and leave no trace.
        kept: how many of the longest layer's last tokens are truncated at the end.
    """

    codecs: tuple[Codec, Codec]
    head_dim: int
    kv_heads: int
    window: int | None
    appends: list[tuple[int, int, int]]
    truncated: int

    def happen(self, caller: Caller, session: str) -> None:
        """Create the session."""
        k, v = (codec.to_mapping() for codec in self.codecs)
        caller.put(f"/sessions/{session}", {"codec": {"k": k, "v": v}, "window": self.window})
        for layer, layers, tokens in self.appends:
            caller.append(session, *pair(layers, self.kv_heads, tokens, self.head_dim), layer=layer)
        lengths = [layer["length"] for layer in caller.info(session)["layers"]]
        caller.post(f"/sessions/{session}/truncate", {"length": max(max(lengths, default=0) - self.truncated, 0)})


histories = st.builds(
    History,
    codecs=st.tuples(codecs, codecs),
    head_dim=st.sampled_from(HEAD_DIMS),
    kv_heads=st.integers(1, 3),
    window=st.none() | st.sampled_from([1, 10, 255, 256, 300, 1000]),
    appends=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from([1, 3, 100, 255, 256, 257, 700])), max_size=6
    ),
    truncated=st.sampled_from([0, 0, 1, 5, 260]),
)


def observed(caller: Caller, session: str) -> list[Any]:
    """Return everything clients can read of a session but its id and times: layers, ranges and the ring."""
    info = caller.info(session)
    own = ("session", "created", "last_used", "expires")
    seen: list[Any] = [{name: value for name, value in info.items() if name not in own}]
    for layer in info["layers"]:
        one = {"layers": f"{layer['layer']}:{layer['layer'] + 1}"}
        starts = {layer["start"], min(layer["start"] + 7, layer["length"]), max(layer["start"], layer["length"] - 3)}
        seen += [caller.content(session, start=start, **one) for start in sorted(starts)]
        seen.append(caller.content(session, form="float32", **one))
        if info["window"] is not None:
            seen.append(caller.content(session, layout="ring", **one))
    seen.append(caller.content(session))
    return seen


def go_on(caller: Caller, session: str, arrays: list[tuple[Any, Any]], back: int) -> list[Any]:
    """Append to a session, truncate and fork it. Return the responses and the final content."""
    statuses = [caller.append(session, k, v, layer=layer).status for layer, (k, v) in enumerate(arrays)]
    lengths = [layer["length"] for layer in caller.info(session)["layers"]]
    cut = caller.post(f"/sessions/{session}/truncate", {"length": max(max(lengths, default=0) - back, 0)})
    fork = caller.post(f"/sessions/{session}/fork", {"id": f"{session}.fork"})
    seen = [statuses, cut.status, fork.status, *observed(caller, session)]
    return [*seen, observed(caller, f"{session}.fork"), metadata_of(exported(caller, session))["groups"]]


@settings(max_examples=30)
@given(history=histories, back=st.sampled_from([0, 3, 256]), version=st.sampled_from([1, 2]))
def test_imported_session_equals_the_exported_one(caller: Caller, history: History, back: int, version: int) -> None:
    original, copy = uuid4().hex, uuid4().hex
    history.happen(caller, original)

    file = exported(caller, original)
    response = imported(caller, copy, as_version_1(file) if version == 1 else file)

    assert response.status == 201, response
    assert ("warning" in response.headers) is (version == 1)
    assert response.body == caller.info(copy) | {"last_used": response.body["last_used"]}
    assert tensors(exported(caller, copy)).keys() == tensors(file).keys()
    assert without_digest(exported(caller, copy)) == without_digest(file)
    assert observed(caller, copy) == observed(caller, original)
    more = [pair(1, history.kv_heads, tokens, history.head_dim) for tokens in (1, 300, 2)]
    assert go_on(caller, copy, more, back) == go_on(caller, original, more, back)
    for session in (original, copy, f"{original}.fork", f"{copy}.fork"):
        assert caller.delete(f"/sessions/{session}").status == 204


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(
    "codec",
    [Codec(bits, layout=layout) for bits, layout in itertools.product(BITS, ("dense", "byte"))] + CODECS,
    ids=str,
)
def test_every_codec_survives_export_and_import(caller: Caller, session: str, codec: Codec, head_dim: int) -> None:
    caller.append(session, *pair(2, 2, 270, head_dim), codec=codec.to_mapping())

    response = imported(caller, f"{session}.copy", exported(caller, session))

    assert response.status == 201
    assert observed(caller, f"{session}.copy") == observed(caller, session)


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"kv_heads": 2}, {"layers": 3, "codec": {"bits": 8}}], ids=str)
def test_open_fields_stay_open_after_import(caller: Caller, session: str, options: Json) -> None:
    caller.put(f"/sessions/{session}", options)

    imported(caller, f"{session}.copy", exported(caller, session))

    assert observed(caller, f"{session}.copy") == observed(caller, session)
    assert caller.append(f"{session}.copy", *pair(2, 2, 3, 128)).status == 200


def test_version_1_file_saved_by_safetensors_library_can_be_imported(caller: Caller, session: str) -> None:
    caller.append(session, *pair(2, 2, 300), codec={"k": {"bits": 5}, "v": {"kind": "float16"}})
    file = as_version_1(exported(caller, session))
    metadata = taken_apart(file)[0][METADATA]

    saved = safetensors.numpy.save(safetensors.numpy.load(file), metadata)

    assert saved != file, "it puts the tensors in an order of its own"
    assert imported(caller, f"{session}.copy", saved).status == 201
    assert observed(caller, f"{session}.copy") == observed(caller, session)


def test_version_1_tensors_may_be_in_any_order(caller: Caller, session: str) -> None:
    caller.append(session, *pair(2, 1, 5), codec={"bits": 3})
    file = as_version_1(exported(caller, session))
    header, _ = taken_apart(file)
    data = b""
    for name, tensor in reversed(tensors(file).items()):
        header[name]["data_offsets"] = [len(data), len(data) + tensor.nbytes]
        data += tensor.tobytes()

    # After a header whose length is not a multiple of 8, no tensor is aligned.
    text = put_together(header, b"")[8:].rstrip() + b"   "
    responses = [
        imported(caller, f"{session}.{i}", len(padded).to_bytes(8, "little") + padded + data)
        for i, padded in enumerate(text + b" " * spaces for spaces in range(8))
    ]

    assert [response.status for response in responses] == [201] * 8
    for i in range(8):
        assert observed(caller, f"{session}.{i}") == observed(caller, session)


def test_large_file_is_imported_in_chunks(caller: Caller, session: str) -> None:
    caller.append(session, *pair(4, 4, 2000, 256), codec={"kind": "float16"})
    file = exported(caller, session)

    assert len(file) > CHUNKED_JOB_NBYTES
    assert imported(caller, f"{session}.copy", file).status == 201
    assert without_digest(exported(caller, f"{session}.copy")) == without_digest(file)


# Defaults of the service


def test_file_without_ttl_gets_the_default_ttl(alone: Caller, session: str) -> None:
    alone.append(session, *pair(1, 1, 3))
    file = exported(alone, session)
    assert metadata_of(file)["ttl_seconds"] == TTL_SECONDS
    header, data = taken_apart(file)
    del header[METADATA]["ttl_seconds"]

    response = imported(alone, f"{session}.copy", sealed(put_together(header, data)))

    assert response.body["ttl_seconds"] == TTL_SECONDS
    assert response.body["expires"] is not None


def test_import_counts_the_same_bytes_as_append(alone: Caller, session: str) -> None:
    # Both sessions have the same full pages.
    alone.append(session, *pair(3, 2, 512))
    file = exported(alone, session)
    before = alone.used_nbytes()
    alone.delete(f"/sessions/{session}")
    without = alone.used_nbytes()

    imported(alone, session, file)

    assert alone.used_nbytes() == before
    alone.delete(f"/sessions/{session}")
    assert alone.used_nbytes() == without


def test_import_responds_with_msgpack_on_request(caller: Caller, session: str) -> None:
    caller.append(session, *pair(1, 1, 3))
    file = exported(caller, session)

    response = caller.http.post(
        f"/sessions/{session}.copy/import",
        content=file,
        headers={"content-type": "application/octet-stream", "accept": MSGPACK},
    )

    assert (response.status_code, response.headers["content-type"]) == (201, MSGPACK)


def test_chunked_body_can_be_imported(caller: Caller, session: str) -> None:
    caller.append(session, *pair(1, 1, 300))
    file = exported(caller, session)
    pieces = (file[start : start + 1000] for start in range(0, len(file), 1000))

    response = caller.http.post(
        f"/sessions/{session}.copy/import", content=pieces, headers={"content-type": "application/octet-stream"}
    )

    assert response.status_code == 201
    assert observed(caller, f"{session}.copy") == observed(caller, session)
