"""Names and accessors of the optional ASGI extensions of the server, with fallbacks."""

from collections.abc import Callable, Sequence

from starlette.types import Scope, Send

# The ASGI extension that tells whether the client left before its answer was whole, where the server has it.
CLIENT_DISCONNECTED = "hadakv.gone"


# Where the server finds `Witness.unread`: in the state that the app's lifespan gives it.
RECORD_REJECTED = "hadakv.unread"


def is_disconnected(scope: Scope) -> Callable[[], bool]:
    """What tells whether the client has left, and an answer to it is not whole; never, if the server cannot tell."""
    extensions = scope.get("extensions")
    gone: Callable[[], bool] | None = extensions.get(CLIENT_DISCONNECTED) if extensions else None
    return gone or _never


def _never() -> bool:
    return False


RECEIVE_INTO = "hadakv.receive_into"
SEND_RESPONSE = "hadakv.answer"


async def send_response(
    scope: Scope, send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> bool:
    """Send a whole response, in one write where the server can.

    Args:
        scope: of the request, whose method is not HEAD.
        send: ASGI's, used if the server does not have the extension.
        status: the HTTP status.
        headers: names and values, with the body's Content-Length.
        body: all of it.

    Returns:
        whether the server took the response as a whole.
    """
    extensions = scope.get("extensions")
    extension = extensions.get(SEND_RESPONSE) if extensions else None
    if extension is not None:
        taken: bool = await extension(status, headers, body)
        return taken
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return False
