"""Keeps web pages away from a service that answers this machine: DNS rebinding, and requests across origins.

A page of any site may send requests to `http://127.0.0.1:8765`, without reading the answers; and with a name of its own
that it lets point to this machine it could read them, too. Browsers say so in headers that no page can change: `Host`
has the name, `Origin` and `Sec-Fetch-Site` where the page is from. Programs that are no browsers send a good Host and
nothing else, and are let through.
"""

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.asgi_extensions import remove_send_response
from hadakv_service.errors import ForbiddenOrigin, MalformedRequest, ServiceError, UnknownHost
from hadakv_service.problem_details import problem_response

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{0,5})?", re.IGNORECASE)
_FROM_HERE = (b"none", b"same-origin")
ANY_HOST = "*"


class HostOriginMiddleware:
    """ASGI middleware that refuses what a browser sends for pages of other sites, and requests for unknown names.

    Args:
        app: what it stands before.
        hosts: names the service goes by, besides addresses and localhost; `*` is any. None: nobody needs a name to
            reach it, so that none is checked.
        origins: of other sites whose pages may call, each as browsers write it.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str] = ()) -> None:
        self._app = app
        self._any_host = hosts is None or ANY_HOST in hosts
        names = {"localhost", *(host.lower().rstrip(".") for host in hosts or ())}
        # The same few hosts come again and again.
        self._is_known = lru_cache(64)(lambda host: is_known(host, names))
        self._origins = {origin.lower().encode("latin-1") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421 or 403 before its body is read."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await problem_response(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    return MalformedRequest("There is more than one Host header.")
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if not (self._any_host or self._is_known(host or b"")):
            return UnknownHost((host or b"").decode("latin-1"))
        if origin is not None:
            own = scope["scheme"].encode() + b"://" + (host or b"")
            if origin.lower() not in (own.lower(), *self._origins):
                return ForbiddenOrigin(f"The request comes from a page of {origin.decode('latin-1')!r}.")
        elif site is not None and site not in _FROM_HERE:
            return ForbiddenOrigin("The request comes from a page of another site.")
        return None


def is_known(host: bytes, names: Collection[str]) -> bool:
    """Whether a Host header has an address, which nobody can rebind, or one of these lower-case names."""
    match = _HOST.fullmatch(host.decode("latin-1"))
    if match is None:
        return False
    name = match["name"].lower()
    if name.rstrip(".") in names:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def add_cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """An app whose answers browsers let pages of these sites read (CORS)."""
    answering = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["*"],
    )

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # An answer that goes out past `send` would lack the headers that are added there.
        remove_send_response(scope)
        await answering(scope, receive, send)

    return answer
