"""What every request meets first: it gets an id, is counted, and is logged when it is over."""

import logging
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadakv_service import problem_details
from hadakv_service.asgi_extensions import SEND_RESPONSE
from hadakv_service.errors import Busy, ServiceError, ShuttingDown
from hadakv_service.observability.access_log import AccessLog
from hadakv_service.observability.counters import RequestCounters
from hadakv_service.observability.request_record import HEADER, OTHER, SCOPE_KEY, RequestRecord, RouteTemplates, current

log = logging.getLogger(__name__)

# The route of a request whose head cannot be read.
UNREADABLE = "unreadable"


class RequestLogMiddleware:
    """ASGI middleware.

    Args:
        app: what comes next.
        templates: what paths are called.
        tally: counts requests.
        log: tells of each, if anybody wants to know.
        ending: whether the service is about to end.
    """

    def __init__(
        self,
        app: ASGIApp,
        templates: RouteTemplates,
        tally: RequestCounters,
        log: AccessLog | None,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_shutting_down = ending
        self._app = app
        self._templates = templates
        self._counters = tally
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[SCOPE_KEY] = exchange = RequestRecord(scope, send)
        # It stays set: what the server still logs of a request names it too, and each request is a task of its own.
        current.set(exchange)
        _wrap_send_response(scope, exchange)
        self._counters.in_flight += 1
        try:
            await self._app(scope, receive, exchange.send)
        except CancelledError:
            if not self._is_shutting_down():
                raise
            # The server ends, and waits no longer for a body that has not come, or an answer that nobody takes.
            if exchange.status:
                exchange.client_disconnected = True
            else:
                unfinished = Busy("The service is ending, and waits no longer for the rest of this request.")
                refusal = unfinished if exchange.body_incomplete else ShuttingDown()
                await problem_details.problem_response(refusal)(scope, receive, exchange.send)
        except Exception as error:
            if not exchange.status:
                await problem_details.unexpected_error_response(error)(scope, receive, exchange.send)
            elif isinstance(cause := error.__cause__ or error, ServiceError):
                # It is too late for another answer; the server closes the connection.
                log.error("an answer breaks off: %s", cause)
                exchange.status = cause.status
            else:
                # The server logs the error, too.
                exchange.status = 500
                raise
        finally:
            self._counters.in_flight -= 1
            self._record(exchange)
            # Both lead back to the scope; left there, all of it would wait for the garbage collector.
            del scope[SCOPE_KEY]
            scope.pop("extensions", None)

    def _record(self, exchange: RequestRecord) -> None:
        seconds = perf_counter() - exchange.started
        exchange.route = exchange.route or self._templates.match(exchange.scope["path"])
        status = exchange.outcome
        self._counters.count(exchange, status, seconds)
        if self._log:
            self._log.write(exchange, status, seconds)

    def flush(self) -> None:
        """Write what is still to be logged."""
        if self._log:
            self._log.flush()

    def record_rejected(self, client: tuple[str, int] | None, scope: Scope | None, status: int) -> bytes:
        """Note a request that cannot be read, or not to its end.

        Args:
            client: who sent it.
            scope: its scope, if its head was read.
            status: of the answer that the connection gives to it.

        Returns:
            its id.
        """
        exchange: RequestRecord | None = scope.get(SCOPE_KEY) if scope else None
        if exchange is not None:
            exchange.status = status
            return exchange.id
        exchange = RequestRecord({"headers": (), "method": OTHER, "client": client}, _nowhere)
        exchange.record_response(UNREADABLE, status, 0)
        self._record(exchange)
        return exchange.id


def _wrap_send_response(scope: Scope, record: RequestRecord) -> None:
    """Make the server's extension add the request id and record the response, as `record.send` does."""
    extensions = scope.get("extensions")
    if not extensions or SEND_RESPONSE not in extensions:
        return
    server_send = extensions[SEND_RESPONSE]

    async def send_response(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        taken: bool = await server_send(status, [*headers, (HEADER, record.id)], body)
        if taken:
            record.record_response(record.route, status, len(body))
        return taken

    extensions[SEND_RESPONSE] = send_response


async def _nowhere(_: Message) -> None:
    """The connection answers by itself."""
