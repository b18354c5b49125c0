"""Actions for the script of a `ScriptedServer`, and data for client tests."""

from typing import Any

import numpy as np

from hadakv_client import Retries
from support.services.scripted_server import Exchange

FAST_RETRIES = Retries(limit=3, initial_backoff_seconds=0.001)
K = np.ones((2, 2, 3, 64), np.float16)
LARGE = np.ones((1, 8, 4096, 512), np.float16)
INFO = {
    **{"session": "a", "kv_heads": 2, "head_dim": 64, "length": 0, "nbytes": 0, "raw_nbytes": 0, "tier": "memory"},
    **{"durability": "spill"},
    **dict.fromkeys(["codec", "window", "ttl_seconds", "expires"]),
    **{"layers": [], "created": "2026-01-02T03:04:05Z", "last_used": "2026-01-02T03:04:05Z"},
}


def problem_document(slug: str, **fields: Any) -> dict[str, Any]:
    """Return a problem document."""
    return {"type": f"urn:hadakv:problem:{slug}", "detail": "Detail.", **fields}


def store(exchange: Exchange, cut: int | None = None) -> None:
    """Respond to an append like the service, without the stored streams."""
    message = exchange.message()
    position, tokens = message.get("position", 0), message["k"]["shape"][-2]
    result = {"session": "a", "position": position, "tokens": tokens, "length": position + tokens}
    exchange.respond(200, result, cut)


def describe(exchange: Exchange) -> None:
    """Respond with the description of a session without tokens."""
    exchange.body()
    exchange.respond(200, INFO)


def miss(exchange: Exchange) -> None:
    """Respond that the session does not exist."""
    exchange.respond(404, problem_document("session-not-found"))


def busy(exchange: Exchange) -> None:
    """Respond that the service is busy."""
    exchange.body()
    exchange.respond(503, problem_document("busy"), retry_after=0)


def hang_up(exchange: Exchange) -> None:
    """Close the connection after the request."""
    exchange.body()
    exchange.hang_up()


def hang_up_in_the_body(exchange: Exchange) -> None:
    """Close the connection after 1 MiB of the request body."""
    exchange.body(1 << 20)
    exchange.hang_up()


def hang_up_in_the_response(exchange: Exchange) -> None:
    """Close the connection before the last byte of the response."""
    store(exchange, cut=-1)
    exchange.hang_up()


def stall(exchange: Exchange) -> None:
    """Read the request, and do not respond."""
    exchange.body()
