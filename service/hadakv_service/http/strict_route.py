"""StrictRoute: FastAPI routes that reject unknown query parameters; HEAD wherever there is GET."""

import re
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any
from urllib.parse import parse_qsl

from fastapi.routing import APIRoute
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.errors import InvalidRequest


def _digits(value: Any) -> Any:
    """Reject what pydantic would convert to an integer too, such as `1.0`, `1_000` or ` 1`."""
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,100}", value, re.ASCII):
        raise ValueError("must be an integer in decimal digits")
    return value


# Marks an integer parameter of the query.
DIGITS = BeforeValidator(_digits)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def check_query(scope: Scope, known: Collection[str]) -> None:
    """Reject query parameters that a call does not have. A misspelt one would otherwise change what is answered.

    Raises:
        InvalidRequest: a parameter is unknown; names it.
    """
    if not scope["query_string"]:
        return
    names = [name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)]
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        expected = f"parameters are {', '.join(known)}" if known else "this call has no query parameters"
        raise InvalidRequest([(name[:80], f"is not known: {expected}") for name in unknown[:8]])


class StrictRoute(APIRoute):
    """FastAPI route that rejects unknown query parameters."""

    def get_route_handler(self) -> Handler:
        """Return FastAPI's handler, after the check."""
        handle = super().get_route_handler()
        known = [parameter.alias for parameter in self.dependant.query_params]

        async def strict(request: Request) -> Response:
            check_query(request.scope, known)
            return await handle(request)

        return strict


class _App:
    """ASGI app of another route. Starlette takes functions for request handlers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _WithoutQuery(_App):
    """ASGI app of a route without query parameters."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_query(scope, ())
        await super().__call__(scope, receive, send)


def reject_queries(routes: Iterable[BaseRoute]) -> None:
    """Make plain Starlette routes with GET, such as the documentation page, reject every query parameter."""
    for route in routes:
        if type(route) is Route and "GET" in (route.methods or ()):
            route.app = _WithoutQuery(route.app)


def head_routes(routes: Iterable[BaseRoute]) -> list[Route]:
    """Return a HEAD route for each FastAPI route with GET. The server sends the headers and drops the body.

    They are routes of their own, because FastAPI would describe a second method of the same route as another call.
    """
    return [
        Route(route.path, _App(route.app), methods=["HEAD"])
        for route in routes
        if isinstance(route, APIRoute) and "GET" in (route.methods or ())
    ]
