"""What a request handler needs, made once for an app."""

import re
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from hadakv_kernels import Backend
from hadakv_service.body import BodyReader
from hadakv_service.device import Device
from hadakv_service.errors import InvalidRequest
from hadakv_service.settings import Settings
from hadakv_service.store import Key, Store

_SESSION_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Context:
    """The service's parts."""

    settings: Settings
    backend: Backend
    store: Store
    device: Device
    bodies: BodyReader


def context(request: Request) -> Context:
    """The parts of the service that answers a request."""
    return cast(Context, request.app.state.context)


def owner(request: Request) -> str:
    """The tenant who calls; the empty name where no tokens are used."""
    return cast(str, request.scope.get("state", {}).get("tenant", ""))


def check_session_id(session: str, field: str = "id") -> str:
    """The id itself.

    Raises:
        InvalidRequest: it is not 1 to 128 of A-Z a-z 0-9 . _ : -
    """
    if not _SESSION_ID.fullmatch(session):
        raise InvalidRequest([(field, "must be 1 to 128 of A-Z a-z 0-9 . _ : -")])
    return session


def session_key(request: Request) -> Key:
    """The key of the session that the path names."""
    return owner(request), check_session_id(request.path_params["id"])
