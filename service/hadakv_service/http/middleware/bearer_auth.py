"""Check bearer tokens."""

from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.errors import Unauthorized
from hadakv_service.problem_details import problem_response
from hadakv_service.tenants.token_file import TokenFile

# Probes come from supervisors that have no token.
OPEN_PATHS = {"/healthz", "/readyz"}


class BearerAuthMiddleware:
    """ASGI middleware that lets through only callers with a token, and notes their tenant in `scope["state"]`."""

    def __init__(self, app: ASGIApp, tokens: TokenFile) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 before its body is read."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            # Of several none counts: whoever stands in between may have looked at another one of them.
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            try:
                tenant = self._tokens.tenant(given[0].decode("latin-1") if len(given) == 1 else "")
            except Unauthorized as error:
                await problem_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)
