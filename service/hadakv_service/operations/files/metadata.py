"""Metadata of a session file: the strings under `__metadata__` in the header."""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from hadakv_kernels.tables import fingerprint
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.session import MAX_LAYERS, Session
from hadakv_service.wire import messages

FORMAT, VERSION = "hadakv-session", "2"
METADATA = "__metadata__"

Position = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]


class Span(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Consecutive layers that were appended together, with stored tokens from position `base` to `length`.

    The layers of a `gap` do not exist.
    """

    layers: Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)]
    base: Position
    length: Position
    gap: bool = False

    @property
    def tokens(self) -> int:
        """Number of stored tokens of each layer."""
        return self.length - self.base


class PagedSpan(Span, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A span whose tensors have `page_tokens` tokens each, the last one fewer."""

    page_tokens: Annotated[int, msgspec.Meta(ge=PAGE_TOKENS, le=1 << 48, multiple_of=PAGE_TOKENS)]

    @property
    def pages(self) -> int:
        """Number of pages in the file."""
        return -(-self.tokens // self.page_tokens)


class Group(msgspec.Struct, forbid_unknown_fields=True):
    """A group of layers with the same axes."""

    runs: list[PagedSpan]


class _Fields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields of both versions. Each value is a string in the file; those that are not in `PLAIN` are JSON."""

    format: str
    version: str
    tables: str
    session: str
    created: datetime
    codec: messages.CodecPair | None = None
    declared_layers: Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)] | None = None
    kv_heads: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)] | None = None
    head_dim: int | None = None
    window: messages.Window | None = None
    ttl_seconds: messages.TtlSeconds | None = None


class Version1(_Fields, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Metadata of a file of version 1. Each layer has its own tensors, and there is no digest."""

    runs: list[Span]

    @property
    def spans(self) -> list[Span]:
        """Runs of the session."""
        return self.runs


class Version2(_Fields, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Metadata of a file of version 2. Each page has its own tensors."""

    groups: Annotated[list[Group], msgspec.Meta(min_length=1, max_length=1)]

    @property
    def spans(self) -> list[PagedSpan]:
        """Runs of the session."""
        return self.groups[0].runs


Metadata = Version1 | Version2
KINDS: dict[str, type[Metadata]] = {"1": Version1, "2": Version2}
# The other values are JSON.
PLAIN = frozenset({"format", "version", "tables", "session", "created"})


def to_strings(session: Session, spans: list[PagedSpan], session_id: str, created: datetime) -> dict[str, str]:
    """Return the metadata of an exported session as the file stores it.

    Args:
        session: value of the session.
        spans: runs of the session.
        session_id: id of the session.
        created: creation time of the session.
    """
    codecs = session.codecs and dict(zip("kv", (codec.to_mapping() for codec in session.codecs), strict=True))
    metadata = Version2(
        format=FORMAT,
        version=VERSION,
        tables=fingerprint(),
        session=session_id,
        created=created,
        groups=[Group(spans)],
        codec=msgspec.convert(codecs, messages.CodecPair) if codecs else None,
        declared_layers=session.layers,
        kv_heads=session.kv_heads,
        head_dim=session.head_dim,
        window=session.window,
        ttl_seconds=session.ttl_seconds,
    )
    fields: dict[str, Any] = msgspec.to_builtins(metadata)
    return {name: x if name in PLAIN else msgspec.json.encode(x).decode() for name, x in fields.items()}
