"""Types of the arguments of calls, and the checks before anything is sent."""

import re
from collections.abc import Callable, Mapping
from operator import index
from typing import Any, Literal, TypedDict

from hadakv_client.errors import CodecMismatch
from hadakv_kernels import Codec

CodecOptions = Codec | Mapping[str, Any]
Position = int | Literal["end"]
# Called with the number of tokens that are transferred, and the number of all tokens of the call.
TokenProgress = Callable[[int, int], object]

MAX_ID_LENGTH = 128
_SESSION_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class SessionOptions(TypedDict, total=False):
    """Options for a new session. An option that is missing or None stays undecided.

    Attributes:
        layers: maximum number of layers.
        kv_heads: number of heads of k and v.
        head_dim: number of elements of one vector.
        window: number of tokens that each layer keeps.
        ttl_seconds: idle time in seconds after which the session expires.
        durability: what survives the end of the service. `"memory"`: nothing. `"spill"`: everything after a clean
            shutdown; after a crash, what had been moved to disk. `"ack"`: every acknowledged append.
    """

    layers: int | None
    kv_heads: int | None
    head_dim: int | None
    window: int | None
    ttl_seconds: float | None
    durability: Literal["memory", "spill", "ack"] | None


def integer(x: Any, name: str) -> int:
    """Return an integer argument as int.

    Raises:
        TypeError: x is not an integer. Booleans are not, though Python counts them among integers.
    """
    if isinstance(x, bool) or not hasattr(x, "__index__"):
        raise TypeError(f"{name} must be an integer, not {x!r}")
    return index(x)


def check_session_id(session_id: str) -> str:
    """Return the session id unchanged, if it is valid.

    Raises:
        ValueError: the id does not consist of 1 to 128 of A-Z a-z 0-9 . _ : - or it is "." or "..".
    """
    # In the path of a URL, "." and ".." have a meaning of their own.
    if not _SESSION_ID.fullmatch(session_id) or session_id in {".", ".."}:
        raise ValueError(
            f"a session id must be 1 to 128 of A-Z a-z 0-9 . _ : -, and neither . nor .., not {session_id[:200]!r}"
        )
    return session_id


def check_prefix(prefix: str | None) -> str | None:
    """Return the beginning of session ids unchanged.

    Raises:
        ValueError: it is longer than a session id.
    """
    if prefix and len(prefix) > MAX_ID_LENGTH:
        raise ValueError(f"a prefix of session ids has at most {MAX_ID_LENGTH} characters, not {len(prefix)}")
    return prefix


def to_codec(options: CodecOptions | None) -> Codec:
    """Return one codec; None is the default codec.

    Raises:
        UnsupportedCodec: an option is unknown or its value is not supported. It is a `ValueError`.
        TypeError: the codec is not a mapping.
    """
    _check_codec_type(options)
    return options if isinstance(options, Codec) else Codec.from_mapping(options or {})


def _check_codec_type(options: object) -> None:
    if options is not None and not isinstance(options, Codec | Mapping):
        raise TypeError(f'codec must be a Codec or a mapping such as {{"bits": 4}}, not {options!r}')


def session_codec(options: CodecOptions | None) -> dict[str, Any] | None:
    """Return the codec of a session as a message field: one codec for both streams, or a map of `k` and `v`.

    Raises:
        UnsupportedCodec: an option is unknown or its value is not supported. It is a `ValueError`.
        ValueError: there are other keys next to `k` or `v`.
        TypeError: the codec is not a mapping.
    """
    _check_codec_type(options)
    if options is None or isinstance(options, Codec) or not options.keys() & {"k", "v"}:
        return None if options is None else to_codec(options).to_mapping()
    if unknown := options.keys() - {"k", "v"}:
        raise ValueError(f"a codec for each of k and v must have no other keys, but has {', '.join(sorted(unknown))}")
    return {stream: to_codec(each).to_mapping() for stream, each in options.items()}


def check_session_codec(requested: Mapping[str, Any] | None, stored: tuple[Codec, Codec] | None) -> None:
    """Check that a codec is the one of the session, as the service does for an append.

    Args:
        requested: result of `session_codec`.
        stored: codecs of k and v of the session; None if it has none yet.

    Raises:
        CodecMismatch: they differ.
    """
    if requested is None or stored is None:
        return
    is_pair = bool(requested.keys() & {"k", "v"})
    wanted = tuple(to_codec(requested.get(stream) if is_pair else requested) for stream in "kv")
    if wanted != tuple(stored):
        options = {stream: codec.to_mapping() for stream, codec in zip("kv", stored, strict=True)}
        detail = f"The session was created with another codec than that of this handle: {options}."
        raise CodecMismatch(CodecMismatch.status, CodecMismatch.slug, detail=detail, fields={"codec": options})
