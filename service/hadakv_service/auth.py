"""Who calls: bearer tokens from a file, stored hashed, each naming a tenant."""

import hashlib
import hmac
import re
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.errors import Unauthorized
from hadakv_service.problems import from_service_error

# Probes come from supervisors that have no token.
OPEN_PATHS = {"/healthz", "/readyz"}
_LINE = re.compile(r"(?P<tenant>[A-Za-z0-9_.-]{1,64}):(?P<digest>[0-9a-fA-F]{64})")


class TokenFile:
    """Lines `tenant:sha256 of the token in hex`; blank lines and lines starting with # are skipped.

    Raises:
        ValueError: a line is neither, or there is no token at all.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._tenants: list[tuple[bytes, str]] = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ValueError(f"{path}:{number}: expected 'tenant:sha256 of the token in hex'")
            self._tenants.append((bytes.fromhex(match["digest"]), match["tenant"]))
        if not self._tenants:
            raise ValueError(f"{path}: has no token")

    def tenant(self, authorization: str) -> str:
        """The tenant an Authorization header names.

        Raises:
            Unauthorized: the header is missing, or its token is not in the file.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("Send the header 'Authorization: Bearer <token>'.")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        # Every digest is compared, so that the time tells nothing about which one matched.
        matches = [tenant for known, tenant in self._tenants if hmac.compare_digest(known, digest)]
        if not matches:
            raise Unauthorized("The token is not known.")
        return matches[0]


class Gate:
    """ASGI middleware that lets through only callers with a token, and notes their tenant in `scope["state"]`."""

    def __init__(self, app: ASGIApp, tokens: TokenFile) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 before its body is read."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = dict(scope["headers"])
            try:
                tenant = self._tokens.tenant(headers.get(b"authorization", b"").decode("latin-1"))
            except Unauthorized as error:
                await from_service_error(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)
