"""Liveness and readiness."""

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hadakv_kernels import Codec, Stream, reference
from hadakv_service import __version__
from hadakv_service.errors import Busy
from hadakv_service.http.app_state import app_state
from hadakv_service.http.content import metadata_response
from hadakv_service.sessions.page import on_host
from hadakv_service.wire import responses

router = APIRouter()

ONES = np.ones((1, 64), np.float32)


@router.get("/healthz", response_model=None)
async def healthz(request: Request) -> Response:
    """The process answers."""
    answer: responses.Health = {"status": "ok", "version": __version__}
    return metadata_response(request, answer)


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> Response:
    """The device encodes a vector of ones as it should, and what lies below memory can be written."""
    service = app_state(request)
    spec = Codec().at(64)

    def work() -> bool:
        encoded = service.backend.encode([Stream(ONES, spec)])[0]
        got = on_host(encoded, service.backend)
        expected = reference.encode(ONES, spec)
        return np.array_equal(got.packed, expected.packed) and np.array_equal(got.norms, expected.norms)

    if not await service.device.call(work):
        raise Busy("The device does not compute what it should.")
    room = await service.device.call(service.store.health_check)
    ledger, tier = service.store.memory, service.store.disk
    answer: responses.Readiness = {
        "status": "ready",
        "version": __version__,
        "backend": service.backend.name,
        "detail": service.backend.detail,
        "sessions": len(service.store),
        "used_nbytes": ledger.used,
        "budget_nbytes": ledger.limit,
        "disk_used_nbytes": tier.used,
        "disk_budget_nbytes": tier.budget,
        "disk_room_nbytes": room,
    }
    return metadata_response(request, answer)
