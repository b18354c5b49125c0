"""Limit the number of requests in progress."""

from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.errors import Busy
from hadakv_service.problem_details import problem_response

# A supervisor that probes this path would kill a busy process if it were rejected.
ALWAYS_OPEN = "/healthz"


class ConcurrencyLimitMiddleware:
    """ASGI middleware that rejects requests while too many others are in progress.

    Args:
        app: the next ASGI app.
        limit: maximum number of requests in progress.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond 503 before its body is read."""
        if scope["type"] != "http" or scope["path"] == ALWAYS_OPEN:
            await self._app(scope, receive, send)
        elif self._in_progress >= self._limit:
            await problem_response(Busy("Too many requests are in progress."))(scope, receive, send)
        else:
            self._in_progress += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._in_progress -= 1
