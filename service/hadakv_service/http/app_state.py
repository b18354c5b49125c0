"""The parts that a request handler needs, and the tenant and session key of a request."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.requests import Request

from hadakv_kernels import Backend
from hadakv_service.asgi_extensions import OpenWork
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.http.request_body import BodyReader
from hadakv_service.observability.counters import RequestCounters
from hadakv_service.observability.prometheus import Metrics
from hadakv_service.operations.files.import_session import Importer
from hadakv_service.sessions.session import Session
from hadakv_service.sessions.session_id import check_session_id
from hadakv_service.settings import Settings
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire.sending_budget import SendingBudget


@dataclass(frozen=True, slots=True)
class AppState:
    """The parts of the service, made once per app.

    Attributes:
        settings: the flags and environment variables.
        backend: encodes and decodes.
        store: the sessions.
        device: the device thread.
        bodies: reads request bodies within the limits.
        sending: counts the memory of responses.
        importer: creates sessions from files.
        new_session: the value a new session starts with.
        counters: request counters.
        metrics: renders `/metrics`.
        open_work: connections and requests of the server.
        started: time of the start, seconds of `time.monotonic`.
    """

    settings: Settings
    backend: Backend
    store: SessionStore
    device: DeviceExecutor
    bodies: BodyReader
    sending: SendingBudget
    importer: Importer
    new_session: Session
    counters: RequestCounters
    metrics: Metrics
    open_work: OpenWork = field(default_factory=OpenWork)
    started: float = field(default_factory=time.monotonic)


def app_state(request: Request) -> AppState:
    """Return the parts of the service that the request is for."""
    return cast(AppState, request.app.state.context)


def tenant(scope: Mapping[str, Any]) -> str:
    """Return the tenant of a request, given as its scope or a `Request`; `""` if the service has no tokens."""
    state = scope.get("state")
    return state.get("tenant", "") if state else ""


def session_key(scope: Mapping[str, Any]) -> Key:
    """Return the key of the session that the path of a request names.

    Args:
        scope: its scope or `Request`, with the path parameter `id`.

    Raises:
        InvalidRequest: the id breaks the rule.
    """
    return tenant(scope), check_session_id(scope["path_params"]["id"])
