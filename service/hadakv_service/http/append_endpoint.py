"""The shortcut that plain small appends take past the framework, whose layers cost more than such an append does.

Whatever is unusual about a request, in its path, its method or its headers, goes the ordinary way to the same append.
"""

import re
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadakv_service import problem_details
from hadakv_service.asgi_extensions import send_response
from hadakv_service.errors import ServiceError
from hadakv_service.http.app_state import AppState
from hadakv_service.http.content import MSGPACK
from hadakv_service.http.request_body import SMALL_BODY_NBYTES, read_small
from hadakv_service.http.routes import kv
from hadakv_service.observability.request_record import SCOPE_KEY, RequestRecord

_PATH = re.compile(rb"/sessions/(?!\.{1,2}/)([A-Za-z0-9_.:-]{1,128})/kv")
_LENGTH = re.compile(rb"\d{1,6}")
_MSGPACK = MSGPACK.encode()
_ROUTE = "/sessions/{id}/kv"


class App(FastAPI):
    """An app with the shortcut.

    Attributes:
        entrance: what every request meets first; a gate may be put before it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.entrance: ASGIApp = self._enter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self.entrance(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = _plain_append(scope)
        if session is None:
            await self._enter_framework(scope, receive, send)
            return
        service: AppState = self.state.context
        try:
            body = await read_small(receive, service.bodies.limit)
            appended = await kv.store(service, (scope.get("state", {}).get("tenant", ""), session), body)
        except ServiceError as error:
            await problem_details.problem_response(error)(scope, receive, send)
        except ClientDisconnect:
            await Response(status_code=499)(scope, receive, send)
        except Exception as error:
            await problem_details.unexpected_error_response(error)(scope, receive, send)
        else:
            # Of so small an append no tensor is worth a piece of its own.
            encoded = msgspec.msgpack.encode(kv.answer(session, appended, minimal=False), enc_hook=np.ndarray.tobytes)
            headers = [(b"content-type", _MSGPACK), (b"content-length", b"%d" % len(encoded))]
            status_code = 201 if appended.created else 200
            record: RequestRecord = scope[SCOPE_KEY]
            record.route = _ROUTE
            await send_response(scope, send, status_code, headers, encoded)

    async def _enter_framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ordinary way, where an error that was logged and answered as a whole ends.

        Starlette raises it once more, upon which uvicorn closes the connection without having said so, and a client's
        next request on it fails.
        """
        answered = False

        async def noting(message: Message) -> None:
            nonlocal answered
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await super().__call__(scope, receive, noting)
        except Exception:
            if not answered:
                raise


def _plain_append(scope: Scope) -> str | None:
    """The session a request appends to, if it is a small append with no more to say than that."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path = _PATH.fullmatch(scope["raw_path"])
    if path is None:
        return None
    kind = length = None
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            length = value
        elif name in (b"prefer", b"transfer-encoding", b"content-encoding"):
            return None
    if kind != _MSGPACK or length is None or not _LENGTH.fullmatch(length) or int(length) > SMALL_BODY_NBYTES:
        return None
    return path[1].decode()
