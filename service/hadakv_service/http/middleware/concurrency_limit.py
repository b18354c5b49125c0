"""How many requests may be under way at once."""

from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.errors import Busy
from hadakv_service.problem_details import problem_response

# A supervisor that asks whether the process lives must not kill it for being busy.
ALWAYS_OPEN = "/healthz"


class ConcurrencyLimitMiddleware:
    """ASGI middleware that tells requests to come back while too many others are under way.

    Args:
        app: what it stands before.
        most: requests that may be under way.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._limit = most
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503 before its body is read."""
        if scope["type"] != "http" or scope["path"] == ALWAYS_OPEN:
            await self._app(scope, receive, send)
        elif self._in_progress >= self._limit:
            await problem_response(Busy("Too many requests are under way."))(scope, receive, send)
        else:
            self._in_progress += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._in_progress -= 1
