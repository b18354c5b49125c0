"""Reject %2F in paths."""

from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.errors import InvalidRequest
from hadakv_service.problem_details import problem_response
from hadakv_service.sessions.session_id import ID_RULE


class EncodedSlashMiddleware:
    """ASGI middleware that rejects `%2F` in paths. Routing would treat the decoded slash as a separator.

    Args:
        app: the next ASGI app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond 422."""
        if scope["type"] == "http" and b"%2f" in scope.get("raw_path", b"").lower():
            await problem_response(InvalidRequest([("id", ID_RULE)]))(scope, receive, send)
        else:
            await self._app(scope, receive, send)
