"""Describe sessions as clients see them."""

from datetime import UTC, datetime
from typing import Literal

import msgspec

from hadakv_service.storage.session_store import SessionRecord
from hadakv_service.wire import responses


def describe(session_id: str, record: SessionRecord) -> responses.SessionInfo:
    """Return a session as the response bodies show it."""
    session = record.session
    spans = list(session.spans())
    codecs = session.codecs
    return {
        "session": session_id,
        "codec": {"k": codecs[0].to_mapping(), "v": codecs[1].to_mapping()} if codecs else None,
        "kv_heads": session.kv_heads,
        "head_dim": session.head_dim,
        "declared_layers": session.layers,
        "layers": [{"layer": layer, "start": start, "length": length} for layer, start, length in spans],
        "length": min((length for _, _, length in spans), default=0),
        "nbytes": session.nbytes,
        "raw_nbytes": session.raw_nbytes,
        "tier": _tier(record),
        "durability": session.durability,
        "window": session.window,
        "ttl_seconds": session.ttl_seconds,
        "created": _timestamp(record.created),
        "last_used": _timestamp(record.last_used),
        "expires": None if record.expires is None else _timestamp(record.expires),
    }


def _tier(record: SessionRecord) -> Literal["memory", "mixed", "disk"]:
    """Return where the tokens of a session are."""
    pages = list(record.session.all_pages())
    resident = sum(page.is_resident for page in pages)
    if resident == len(pages) and (pages or not record.session.rows):
        return "memory"
    return "mixed" if resident else "disk"


def _timestamp(unix_seconds: float) -> str:
    return str(msgspec.to_builtins(datetime.fromtimestamp(unix_seconds, UTC)))
