"""Check bearer tokens."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.errors import Unauthorized
from hadakv_service.problem_details import problem_response
from hadakv_service.tenants.token_file import TokenFile


class BearerAuthMiddleware:
    """ASGI middleware that rejects requests without a valid token, and sets `scope["state"]["tenant"]`.

    Args:
        app: the next ASGI app.
        tokens: the tokens and their tenants.
        open_paths: paths that need no token.
    """

    def __init__(self, app: ASGIApp, tokens: TokenFile, open_paths: Collection[str]) -> None:
        self._app = app
        self._open_paths = open_paths
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond 401 before its body is read."""
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            # Reject requests with several Authorization headers. A proxy may have checked a different one.
            credentials = [value for name, value in scope["headers"] if name == b"authorization"]
            try:
                tenant = self._tokens.tenant(credentials[0].decode("latin-1") if len(credentials) == 1 else "")
            except Unauthorized as error:
                await problem_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)
