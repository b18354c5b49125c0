"""What a request handler needs, made once for an app."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from hadakv_kernels import Backend
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.http.request_body import BodyReader
from hadakv_service.observability.counters import RequestCounters
from hadakv_service.observability.prometheus import Metrics
from hadakv_service.sessions.session import Session
from hadakv_service.sessions.session_id import check_session_id
from hadakv_service.settings import Settings
from hadakv_service.storage.session_store import Key, SessionStore


@dataclass(frozen=True, slots=True)
class AppState:
    """The service's parts.

    Attributes:
        new_session: what a session is before anything is known of it.
    """

    settings: Settings
    backend: Backend
    store: SessionStore
    device: DeviceExecutor
    bodies: BodyReader
    new_session: Session
    counters: RequestCounters
    metrics: Metrics


def app_state(request: Request) -> AppState:
    """The parts of the service that answers a request."""
    return cast(AppState, request.app.state.context)


def tenant(request: Request) -> str:
    """The tenant who calls; the empty name where no tokens are used."""
    return cast(str, request.scope.get("state", {}).get("tenant", ""))


def session_key(request: Request) -> Key:
    """The key of the session that the path names."""
    return tenant(request), check_session_id(request.path_params["id"])
