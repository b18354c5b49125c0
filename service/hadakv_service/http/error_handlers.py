"""FastAPI exception handlers, which make every error a problem document."""

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadakv_service.errors import InvalidRequest, ServiceError
from hadakv_service.problem_details import problem, problem_response, unexpected_error_response

_SLUGS = {404: "not-found", 405: "method-not-allowed", 400: "malformed-body"}


async def _service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return problem_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    slug = _SLUGS.get(error.status_code, "http-error")
    headers = {"Allow": ", ".join(_methods(request))} if error.status_code == 405 else error.headers or {}
    return problem(error.status_code, slug, title, str(error.detail), {}, headers)


def _methods(request: Request) -> list[str]:
    """Return the methods of all routes at the request's path. Starlette's 405 names those of the first route only."""

    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in ("DELETE", "GET", "HEAD", "POST", "PUT") if is_allowed(method)]


async def _query_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [(".".join(map(str, e["loc"][1:])), str(e["msg"]).removeprefix("Value error, ")) for e in error.errors()]
    return problem_response(InvalidRequest(errors))


async def _client_disconnected(_: Request, __: Exception) -> Response:
    # The client cannot read a response. 499 is what proxies log for this.
    return Response(status_code=499)


class AnsweredErrorMiddleware:
    """ASGI middleware that drops an error once a whole response was sent for it.

    Starlette sends the response of an unexpected error and raises the error again. uvicorn would then close the
    connection without having announced it, and the client's next request on it would fail.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        is_answered = False

        async def record_end(message: Message) -> None:
            nonlocal is_answered
            await send(message)
            is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, record_end)
        except Exception:
            if not is_answered:
                raise


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of an app a problem document."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _query_error)
    app.add_exception_handler(ClientDisconnect, _client_disconnected)
    app.add_exception_handler(Exception, _unexpected_error)


async def _unexpected_error(_: Request, error: Exception) -> Response:
    if isinstance(error.__cause__, ServiceError):
        # The response has started, so this one is not sent. The request log reports the interruption.
        return problem_response(error.__cause__)
    return unexpected_error_response(error)
