"""Errors of appends that do not fit the stored session: what differs, and what to send instead."""

from dataclasses import asdict

from hadakv_kernels import Codec
from hadakv_service.errors import CodecMismatch, PositionConflict


def position_conflict(position: int, tokens: int, first: int, length: int) -> PositionConflict:
    """Return the error for an append that is neither at the end of its layers nor a repetition.

    Args:
        position: position of the first token of the append.
        tokens: number of tokens of the append.
        first: position of the first stored token.
        length: position after the last stored token.
    """
    stop = position + tokens
    detail, append = f"The layers have {length} tokens", f"The append at position {position}"
    if position > length:
        detail += f": the next append must be at position {length}, not {position}."
    elif stop > length:
        detail += f". {append} reaches beyond them, to {stop}: append the rest at position {length}."
    elif position < first and stop <= first:
        detail += f". {append} is not at the end."
    else:
        detail += f". {append} differs from what is stored."
    if position < first:
        detail += f" Tokens before {first} have left the window and cannot be compared."
    return PositionConflict(detail, length)


def codec_mismatch(stored: tuple[Codec, Codec], requested: tuple[Codec, Codec]) -> CodecMismatch:
    """Return the error for an append with other codecs. It names the options that differ."""
    streams = []
    for name, mine, given in zip("kv", map(asdict, stored), map(asdict, requested), strict=True):
        if differing := [option for option in mine if mine[option] != given[option]]:
            old, new = (", ".join(f"{option} {codec[option]}" for option in differing) for codec in (mine, given))
            streams.append(f"{name} has {old}, not {new}")
    detail = f"The session was created with another codec: {'; '.join(streams)}."
    return CodecMismatch(detail, codec={name: codec.to_mapping() for name, codec in zip("kv", stored, strict=True)})
