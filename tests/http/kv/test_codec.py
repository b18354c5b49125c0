"""Encoding and decoding without a session, over HTTP."""

import numpy as np
import pytest

from hadakv_kernels import Codec, reference
from support.contract import Caller, stream, tensor
from support.inputs.arrays import CODECS, DEFAULT, FORMS, RNG, decoded, pair, values


@pytest.mark.parametrize("lead", [(), (1,), (5,), (0,), (2, 3), (2, 0, 3), (1, 2, 3, 1)], ids=str)
@pytest.mark.parametrize("codec", [Codec(), Codec(bits=3), Codec(kind="float16")], ids=lambda c: f"{c.kind}-{c.bits}")
def test_encode_and_decode_keep_leading_axes(caller: Caller, codec: Codec, lead: tuple[int, ...]) -> None:
    x = RNG.standard_normal((*lead, 512)).astype(np.float32)
    named = {"codec": codec.to_mapping()}

    packed = caller.post("/encode", {"x": tensor(x), **named})
    unpacked = caller.post("/decode", {**packed.body, **named, "head_dim": 512})

    assert packed.body == stream(x, codec)
    assert unpacked.body == decoded(x, codec, "float32")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}-{codec.layout}")
def test_decode_returns_every_form(caller: Caller, codec: Codec, form: str) -> None:
    x = values(1, 2, 3, 128, dtype="bfloat16")
    named = {"codec": codec.to_mapping(), "head_dim": 128}

    response = caller.post("/decode", {**stream(x, codec), **named, "form": form})

    assert response.body == decoded(x, codec, form)


@pytest.mark.parametrize("rows_of_x", [0, 1, 2000])
def test_encode_returns_diagnostics_on_request(caller: Caller, rows_of_x: int) -> None:
    x = values(1, 1, rows_of_x, 512)
    seen = reference.diagnose(x, DEFAULT.at(512))

    response = caller.post("/encode", {"x": tensor(x), "diagnostics": True})

    assert response.body == stream(x, DEFAULT) | {"scaled": tensor(seen.scaled), "rms": tensor(seen.rms)}


def test_encode_and_decode_create_no_session(caller: Caller) -> None:
    before = caller.get("/readyz").body["sessions"]

    caller.post("/encode", {"x": tensor(values(1, 1, 9))})

    assert caller.get("/readyz").body["sessions"] == before


def test_append_response_can_be_decoded(caller: Caller, session: str) -> None:
    k, v = pair(2, 2, 5, 256)
    appended = caller.append(session, k, v, codec={"bits": 6}).body

    response = caller.post("/decode", {**appended["v"], "codec": {"bits": 6}, "head_dim": 256})

    assert response.body == {"values": caller.read(session, form="float32")["v"]["values"]}
