"""Request id, counters and access log of every request. The outermost middleware."""

import logging
from asyncio import CancelledError
from collections.abc import Callable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadakv_service import problem_details
from hadakv_service.errors import Busy, ServiceError, ShuttingDown
from hadakv_service.observability.access_log import AccessLog
from hadakv_service.observability.counters import RequestCounters
from hadakv_service.observability.request_record import OTHER, SCOPE_KEY, RequestRecord, RouteTemplates, current

log = logging.getLogger(__name__)

# The route of a request whose headers cannot be parsed.
UNREADABLE = "unreadable"


class RequestLogMiddleware:
    """ASGI middleware that gives every request an id, counts it, logs it, and turns its last errors into responses.

    Args:
        app: the next ASGI app.
        templates: the templates of the app's paths.
        counters: request counters.
        access_log: logs each request; None for no access log.
        is_shutting_down: whether the server has begun to shut down.
    """

    def __init__(
        self,
        app: ASGIApp,
        templates: RouteTemplates,
        counters: RequestCounters,
        access_log: AccessLog | None,
        is_shutting_down: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_shutting_down = is_shutting_down
        self._app = app
        self._templates = templates
        self._counters = counters
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[SCOPE_KEY] = record = RequestRecord(scope, send)
        # Do not reset it: the server may still log something about this request. Each request has its own task.
        current.set(record)
        self._counters.in_flight += 1
        try:
            await self._app(scope, receive, record.send)
        except CancelledError:
            if not self._is_shutting_down():
                raise
            # The server shuts down and cancels requests that still wait for a body, or for a client to read.
            if record.status:
                record.client_disconnected = True
            else:
                # An incomplete body was not processed, so the request may be sent again: Busy has Retry-After.
                incomplete = Busy("The service is shutting down and did not wait for the rest of the body.")
                shutdown_error = incomplete if record.body_incomplete else ShuttingDown()
                await problem_details.problem_response(shutdown_error)(scope, receive, record.send)
        except Exception as error:
            if not record.status:
                await problem_details.unexpected_error_response(error)(scope, receive, record.send)
            elif isinstance(cause := error.__cause__ or error, ServiceError):
                # The response has started, so no other can be sent. The server closes the connection.
                log.error("response interrupted: %s", cause)
                record.status = cause.status
            else:
                # The server logs the error.
                record.status = 500
                raise
        finally:
            self._counters.in_flight -= 1
            self._finish(record)
            # Both refer to the scope. Break the cycles, so that nothing waits for the garbage collector.
            del scope[SCOPE_KEY]
            scope.pop("extensions", None)

    def _finish(self, record: RequestRecord) -> None:
        seconds = perf_counter() - record.started
        record.route = record.route or self._templates.match(record.scope["path"])
        status = record.outcome
        self._counters.count(record, status, seconds)
        if self._access_log:
            self._access_log.write(record, status, seconds)

    def flush(self) -> None:
        """Write buffered lines of the access log."""
        if self._access_log:
            self._access_log.flush()

    def record_rejected(self, client: tuple[str, int] | None, scope: Scope | None, status: int, reason: str) -> bytes:
        """Record a request that the connection rejects itself: malformed, too large or too slow.

        Args:
            client: address of the client.
            scope: ASGI scope of the request, if its headers were parsed.
            status: status of the connection's response.
            reason: last part of the type of the problem in the response.

        Returns:
            the request id.
        """
        record: RequestRecord | None = scope.get(SCOPE_KEY) if scope else None
        if record is not None:
            record.status, record.problem = status, reason
            return record.id
        record = RequestRecord({"headers": (), "method": OTHER, "client": client}, _send_nothing)
        record.problem = reason
        record.record_response(UNREADABLE, status, 0)
        self._finish(record)
        return record.id


async def _send_nothing(_: Message) -> None:
    """Ignore a message: the connection sends its own response."""
