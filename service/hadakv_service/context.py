"""What a request handler needs, made once for an app."""

import re
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_kernels import Backend
from hadakv_service.body import BodyReader
from hadakv_service.device import Device
from hadakv_service.errors import InvalidRequest
from hadakv_service.metrics import Metrics
from hadakv_service.problems import from_service_error
from hadakv_service.session import Session
from hadakv_service.settings import Settings
from hadakv_service.store import Key, Store
from hadakv_service.tallies import RequestTally

ID_RULE = "must be 1 to 128 of A-Z a-z 0-9 . _ : - and neither . nor .."
# In a path "." and ".." mean something else to whoever handles it on its way here.
_SESSION_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Context:
    """The service's parts.

    Attributes:
        new_session: what a session is before anything is known of it.
    """

    settings: Settings
    backend: Backend
    store: Store
    device: Device
    bodies: BodyReader
    new_session: Session
    tally: RequestTally
    metrics: Metrics


def context(request: Request) -> Context:
    """The parts of the service that answers a request."""
    return cast(Context, request.app.state.context)


def owner(request: Request) -> str:
    """The tenant who calls; the empty name where no tokens are used."""
    return cast(str, request.scope.get("state", {}).get("tenant", ""))


def check_session_id(session: str, field: str = "id") -> str:
    """The id itself.

    Raises:
        InvalidRequest: it is not 1 to 128 of A-Z a-z 0-9 . _ : - or it is "." or "..".
    """
    if not _SESSION_ID.fullmatch(session):
        raise InvalidRequest([(field, ID_RULE)])
    return session


class WholeIds:
    """ASGI middleware that refuses encoded slashes, which routing would take for borders between parts of the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 422."""
        if scope["type"] == "http" and b"%2f" in scope.get("raw_path", b"").lower():
            await from_service_error(InvalidRequest([("id", ID_RULE)]))(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def session_key(request: Request) -> Key:
    """The key of the session that the path names."""
    return owner(request), check_session_id(request.path_params["id"])
