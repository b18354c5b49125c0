"""Names and accessors of the optional ASGI extensions of the server, with fallbacks."""

from collections.abc import Callable

from starlette.types import Scope

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
