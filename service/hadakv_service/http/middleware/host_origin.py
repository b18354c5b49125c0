"""Check Host, Origin and Sec-Fetch-Site against DNS rebinding and cross-origin requests; add CORS headers.

A web page of any site may send requests to `http://127.0.0.1:8765`, without reading the responses. If the site lets its
own host name point to this machine, the page could read the responses too (DNS rebinding). Browsers report both in
headers that a page cannot change: `Host` has the name, `Origin` and `Sec-Fetch-Site` have the origin of the page.
Programs that are not browsers send a known Host and neither of the others, and pass.
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
_ALLOWED_SITES = (b"none", b"same-origin")
ANY_HOST = "*"


class HostOriginMiddleware:
    """ASGI middleware that rejects unknown Host names and requests of web pages of other origins.

    Args:
        app: the next ASGI app.
        hosts: Host names to accept besides IP addresses and localhost; `*` accepts any. None accepts any as well: a
            Unix socket is not reached by name.
        origins: other origins whose pages may call, as browsers write them.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str] = ()) -> None:
        self._app = app
        self._any_host = hosts is None or ANY_HOST in hosts
        names = {"localhost", *(host.lower().rstrip(".") for host in hosts or ())}
        # Clients use few different names.
        self._is_known = lru_cache(64)(lambda host: is_known(host, names))
        self._origins = {origin.lower().encode("latin-1") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond 421 or 403 before its body is read."""
        if scope["type"] == "http" and (error := self._check(scope)) is not None:
            await problem_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> ServiceError | None:
        """Return the error of a request that must be rejected."""
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    return MalformedRequest("There are several Host headers.")
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if not (self._any_host or self._is_known(host or b"")):
            return UnknownHost((host or b"").decode("latin-1"))
        if origin is not None:
            own_origin = scope["scheme"].encode() + b"://" + (host or b"")
            if origin.lower() not in (own_origin.lower(), *self._origins):
                return ForbiddenOrigin(f"The request comes from a page of {origin.decode('latin-1')!r}.")
        elif site is not None and site not in _ALLOWED_SITES:
            return ForbiddenOrigin("The request comes from a page of another site.")
        return None


def is_known(host: bytes, names: Collection[str]) -> bool:
    """Whether a Host header is one of these lower-case names or an IP address, which DNS cannot rebind."""
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


class CorsMiddleware(CORSMiddleware):
    """ASGI middleware that lets web pages of these origins read responses (CORS).

    Args:
        app: the next ASGI app.
        origins: the origins, as browsers write them.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["*"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond to a preflight request."""
        # This middleware adds headers to the messages passed to `send`. The extension would bypass it.
        remove_send_response(scope)
        await super().__call__(scope, receive, send)
