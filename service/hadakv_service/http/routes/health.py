"""Liveness and readiness."""

import time

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import Codec, Stream, reference
from hadakv_service import __version__
from hadakv_service.errors import SelfTestFailed
from hadakv_service.http.app_state import app_state
from hadakv_service.http.content import metadata_response
from hadakv_service.http.strict_route import StrictRoute
from hadakv_service.sessions.page import on_host
from hadakv_service.wire import responses

router = APIRouter(route_class=StrictRoute)

# Paths that need no token: supervisors that probe them have none.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

ONES = np.ones((1, 64), np.float32)


@router.get("/healthz", response_model=None)
async def healthz(request: Request) -> Response:
    """Report that the process is running, and the limit for request bodies."""
    limit = app_state(request).bodies.limit
    content: responses.Health = {"status": "ok", "version": __version__, "max_body_nbytes": limit}
    return metadata_response(request, content)


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> Response:
    """Check that the device encodes a known vector correctly and that the disk store can be written."""
    service = app_state(request)
    spec = Codec().at(64)

    def encodes_correctly() -> bool:
        encoded = service.backend.encode([Stream(ONES, spec)])[0]
        actual = on_host(encoded, service.backend)
        expected = reference.encode(ONES, spec)
        return np.array_equal(actual.packed, expected.packed) and np.array_equal(actual.norms, expected.norms)

    if not await service.device.call(encodes_correctly):
        detail = "The device encodes a known vector to wrong bytes. Restart the service, or choose another --backend."
        raise SelfTestFailed(detail)
    disk_available = await service.device.call(service.store.health_check)
    memory, disk, checkpoints = service.store.memory, service.store.disk, service.store.checkpoints
    content: responses.Readiness = {
        "status": "ready",
        "version": __version__,
        "backend": service.backend.name,
        "detail": service.backend.detail,
        "sessions": len(service.store),
        "used_nbytes": memory.used,
        "budget_nbytes": memory.limit,
        "disk_used_nbytes": disk.used,
        "disk_budget_nbytes": disk.budget,
        "disk_room_nbytes": disk_available,
        "checkpoint_lag_seconds": checkpoints.lag_seconds if checkpoints.seconds else None,
        "uptime_seconds": time.monotonic() - service.started,
    }
    return metadata_response(request, content)
