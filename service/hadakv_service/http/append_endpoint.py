"""POST /sessions/{id}/kv as a plain ASGI endpoint, and the dispatcher that calls it without going through FastAPI.

FastAPI's layers take longer than a small append does.
"""

import re

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service import asgi_extensions, problem_details
from hadakv_service.errors import ServiceError
from hadakv_service.http.app_state import AppState, session_key
from hadakv_service.http.content import MSGPACK, is_json
from hadakv_service.http.request_body import SMALL_BODY_NBYTES, read_small
from hadakv_service.http.sending import released_on_error, send_counted
from hadakv_service.http.strict_route import check_query
from hadakv_service.observability.request_record import SCOPE_KEY
from hadakv_service.operations.append import AppendOperation, AppendOutcome, AppendRequest
from hadakv_service.storage.session_store import Key
from hadakv_service.wire import messages, responses, serialization
from hadakv_service.wire.sending_budget import Share

ROUTE = "/sessions/{id}/kv"
# A path with percent-encoding does not match: FastAPI decodes it, or rejects it.
_PATH = re.compile(rb"/sessions/([^/%]+)/kv")
_MSGPACK = MSGPACK.encode()
# Digits of the longest Content-Length that may be small.
_MAX_DIGITS = 6


class AppendDispatcher:
    """ASGI middleware that sends appends to their endpoint and all other requests to the next app.

    Args:
        app: the next ASGI app.
        append: the endpoint.
    """

    def __init__(self, app: ASGIApp, append: ASGIApp) -> None:
        self._app = app
        self._append = append

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send appends to the append endpoint, and every other request to the next app."""
        session = appended_session(scope)
        if session is None:
            await self._app(scope, receive, send)
        else:
            scope["path_params"] = {"id": session}
            await self._append(scope, receive, send)


def appended_session(scope: Scope) -> str | None:
    """Return the session id in the path of an append, unchecked; None for any other request."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    # ASGI servers may omit the raw path. FastAPI then finds the same endpoint.
    match = _PATH.fullmatch(scope.get("raw_path") or b"")
    return match[1].decode("latin-1") if match else None


class AppendEndpoint:
    """ASGI endpoint that encodes K and V and stores them at the end of the session.

    Args:
        service: the parts of the service.
    """

    def __init__(self, service: AppState) -> None:
        self._service = service
        self._small_nbytes = min(SMALL_BODY_NBYTES, service.bodies.limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, append, and send the result or the problem. The path parameter `id` names the session."""
        scope[SCOPE_KEY].route = ROUTE
        # The first header of a name wins, as in Starlette's Headers.
        headers = dict(reversed(scope["headers"]))
        prefer = headers.get(b"prefer")
        minimal = prefer is not None and b"return=minimal" in prefer.replace(b" ", b"").lower()
        try:
            key = session_key(scope)
            check_query(scope, ())
            outcome, share = await self._receive(key, scope, receive, headers, minimal=minimal)
        except ServiceError as error:
            await problem_details.problem_response(error)(scope, receive, send)
        except ClientDisconnect:
            # The client cannot read a response. 499 is what proxies log for this.
            await Response(status_code=499)(scope, receive, send)
        except Exception as error:
            await problem_details.unexpected_error_response(error)(scope, receive, send)
        else:
            await _respond(scope, send, key[1], outcome, share, minimal=minimal)

    async def _receive(
        self, key: Key, scope: Scope, receive: Receive, headers: dict[bytes, bytes], *, minimal: bool
    ) -> tuple[AppendOutcome, Share | None]:
        """Check the headers, read the body and append it.

        Returns:
            The result, and its share of the memory for responses if it is large.
        """
        if headers.get(b"content-type") != _MSGPACK or b"content-encoding" in headers:
            is_json(Request(scope))
        length = headers.get(b"content-length", b"")
        if length.isdigit() and len(length) <= _MAX_DIGITS and int(length) <= self._small_nbytes:
            # The response is no larger than the body, so it needs no share.
            return await self._append(key, await read_small(receive, self._service.bodies.limit)), None
        async with self._service.bodies.read(Request(scope, receive)) as body:
            # Wait for memory before the tokens are stored: a response with 503 must not have stored them.
            share = None if minimal else await self._service.sending.acquire(len(body))
            with released_on_error(share):
                return await self._append(key, body), share

    async def _append(self, key: Key, body: serialization.Buffer) -> AppendOutcome:
        """Append the tensors of a body, which must not change until this returns."""
        service = self._service
        request = AppendRequest.from_body(serialization.decode_body(messages.AppendBody, body))
        operation = AppendOperation(key, request, service.store, service.backend, service.new_session)
        # Requests that arrive together share a batch, which takes less time than one after the other here.
        run = service.device.run_short if len(service.open_work.requests) <= 1 else service.device.run
        outcome = await run(operation)
        service.counters.appended += operation.added_tokens
        raw_nbytes, packed_nbytes = operation.added_nbytes
        service.counters.appended_raw_nbytes += raw_nbytes
        service.counters.appended_packed_nbytes += packed_nbytes
        return outcome


async def _respond(
    scope: Scope, send: Send, session: str, outcome: AppendOutcome, share: Share | None, *, minimal: bool
) -> None:
    """Send what was stored, in one write if it is small. Release the share."""
    stored: responses.StoredAppend = {
        "session": session,
        "position": outcome.position,
        "tokens": outcome.tokens,
        "length": outcome.position + outcome.tokens,
    }
    if not minimal:
        k_spec, v_spec = outcome.specs
        stored["k"] = serialization.stream(outcome.k, k_spec)
        stored["v"] = serialization.stream(outcome.v, v_spec)
    status = 201 if outcome.created else 200
    nbytes = 0 if minimal else outcome.k.packed.nbytes + outcome.v.packed.nbytes
    if share is None or nbytes < serialization.LARGE_TENSOR_NBYTES:
        if share:
            share.release()
        body = serialization.encode_small(stored)
        await asgi_extensions.send_response(scope, send, status, _headers(len(body)), body)
    else:
        chunks = serialization.encode_chunks(stored)
        await send_counted(send, status, _headers(sum(map(len, chunks))), chunks, share)


def _headers(nbytes: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", _MSGPACK), (b"content-length", b"%d" % nbytes)]
