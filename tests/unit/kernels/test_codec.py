"""Options of a codec, and the sizes that follow from them."""

from typing import Any

import pytest

from hadakv_kernels import BITS, HEAD_DIMS, Codec, CodecError, CodecSpec, UnsupportedCodec, UnsupportedShape

DEFAULTS = {
    "bits": 4,
    "rotation": "hadamard",
    "layout": "dense",
    "codebook": "mlx-native",
    "norm": "exact",
    "kind": "quantized",
}


def test_codec_defaults() -> None:
    assert Codec().to_mapping() == DEFAULTS
    assert Codec.from_mapping({}) == Codec.from_mapping(DEFAULTS) == Codec()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("bits", 7, "must be one of 2, 3, 4, 5, 6, 8, not 7"),
        ("bits", 0, "must be one of 2, 3, 4, 5, 6, 8, not 0"),
        ("bits", 4.0, "must be one of 2, 3, 4, 5, 6, 8, not 4.0"),
        ("bits", "4", "must be one of 2, 3, 4, 5, 6, 8, not '4'"),
        ("bits", None, "must be one of 2, 3, 4, 5, 6, 8, not None"),
        ("rotation", "haar", """must be "hadamard" or "none", not 'haar'"""),
        ("rotation", None, """must be "hadamard" or "none", not None"""),
        ("layout", "Dense", """must be "dense" or "byte", not 'Dense'"""),
        ("codebook", "", """must be "mlx-native" or "lloyd-max", not ''"""),
        ("norm", 1, """must be "exact" or "unbiased", not 1"""),
        ("kind", ["float16"], """must be "quantized" or "float16", not ['float16']"""),
        ("d512_scale", 0, "must be a positive finite number, not 0"),
        ("d512_scale", -1.0, "must be a positive finite number, not -1.0"),
        ("d512_scale", 1e-60, "must be a positive finite number, not 1e-60"),
        ("d512_scale", 1e39, "must be a positive finite number, not 1e+39"),
        ("d512_scale", 10**400, "must be a positive finite number, not 1"),
        ("d512_scale", float("nan"), "must be a positive finite number, not nan"),
        ("d512_scale", float("inf"), "must be a positive finite number, not inf"),
        ("d512_scale", True, "must be a positive finite number, not True"),
        ("d512_scale", "1", "must be a positive finite number, not '1'"),
        ("colour", "red", "unknown option: options are bits, codebook, d512_scale, kind, layout, norm, rotation"),
    ],
)
def test_invalid_option_raises_with_field_and_reason(field: str, value: Any, reason: str) -> None:
    with pytest.raises(UnsupportedCodec) as caught:
        Codec.from_mapping({field: value})

    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)
    assert str(caught.value).startswith(f"codec.{field}: {reason}")
    assert isinstance(caught.value, CodecError)


def test_bits_must_not_be_a_bool() -> None:
    with pytest.raises(UnsupportedCodec):
        Codec(bits=True)


def test_codec_round_trips_through_a_mapping() -> None:
    codec = Codec(6, "none", "byte", "lloyd-max", "unbiased", "quantized", 22.627417)

    options = codec.to_mapping()

    assert options["d512_scale"] == pytest.approx(22.627417)
    assert Codec.from_mapping(options) == codec


def test_d512_scale_is_float32_and_omitted_if_one() -> None:
    assert Codec(d512_scale=0.1).d512_scale == 0.10000000149011612
    assert Codec(d512_scale=1).to_mapping() == DEFAULTS
    assert Codec(d512_scale=16).to_mapping() == {**DEFAULTS, "d512_scale": 16.0}


def test_equal_codecs_hash_equal() -> None:
    assert len({Codec(), Codec(4), Codec(5)}) == 2
    assert len({Codec().at(64), Codec().at(64), Codec().at(128)}) == 2


@pytest.mark.parametrize("head_dim", [0, 1, 32, 96, 192, 1024, -64])
def test_unsupported_head_dim_is_rejected(head_dim: int) -> None:
    with pytest.raises(UnsupportedShape, match=f"head_dim must be one of 64, 128, 256, 512, not {head_dim}"):
        CodecSpec(Codec(), head_dim)


@pytest.mark.parametrize(
    ("codec", "head_dim", "row_bytes", "norms", "nbytes"),
    [
        (Codec(2), 64, 16, 1, 20),
        (Codec(3), 64, 24, 1, 28),
        (Codec(4), 128, 64, 1, 68),
        (Codec(5), 64, 40, 1, 44),
        (Codec(6), 256, 192, 1, 196),
        (Codec(8), 256, 256, 1, 260),
        (Codec(4), 512, 256, 2, 264),
        (Codec(5), 512, 320, 2, 328),
        (Codec(5, layout="byte"), 512, 512, 2, 520),
        (Codec(2, layout="byte"), 128, 128, 1, 132),
        (Codec(4, rotation="none", norm="unbiased"), 512, 256, 2, 264),
        (Codec(kind="float16"), 64, 128, 0, 128),
        (Codec(kind="float16", layout="byte"), 512, 1024, 0, 1024),
    ],
)
def test_sizes_for_codec_and_head_dim(codec: Codec, head_dim: int, row_bytes: int, norms: int, nbytes: int) -> None:
    spec = codec.at(head_dim)

    assert (spec.row_bytes, spec.norms, spec.nbytes) == (row_bytes, norms, nbytes)


def test_rows_are_whole_bytes_for_all_codecs() -> None:
    assert all(head_dim * bits % 8 == 0 for head_dim in HEAD_DIMS for bits in BITS)


def test_only_head_dim_512_has_two_blocks() -> None:
    assert {d: (Codec().at(d).blocks, Codec().at(d).block_dim) for d in HEAD_DIMS} == {
        64: (1, 64),
        128: (1, 128),
        256: (1, 256),
        512: (2, 256),
    }


def test_constants_are_rounded_to_float32() -> None:
    constants = {d: (Codec().at(d).inv_sqrt.item(), Codec().at(d).gain.item()) for d in HEAD_DIMS}

    assert constants == {
        64: (0.125, 8.0),
        128: (0.0883883461356163, 11.313708305358887),
        256: (0.0625, 16.0),
        512: (0.04419417306780815, 1.0),
    }
