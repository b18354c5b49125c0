"""Puts the parts together into an ASGI app."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.routing import Route

from hadakv_kernels import Backend, open_backend
from hadakv_service import __version__, openapi, problems, tracing
from hadakv_service.auth import Gate, TokenFile
from hadakv_service.body import BodyReader
from hadakv_service.context import Context, WholeIds
from hadakv_service.device import Device
from hadakv_service.exchange import UNREAD
from hadakv_service.logs import RequestLog
from hadakv_service.metrics import Memory, Metrics, Service
from hadakv_service.routes import branches, codec, health, kv, metrics, sessions
from hadakv_service.settings import Settings
from hadakv_service.shortcut import App
from hadakv_service.store import Store
from hadakv_service.tallies import DeviceTally, RequestTally
from hadakv_service.watch import Templates, Watch

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ROUTERS = (kv.router, sessions.router, branches.router, codec.router, health.router, metrics.router)


def create_app(settings: Settings, backend: Backend | None = None, traces: "TracerProvider | None" = None) -> FastAPI:
    """The service as an app.

    Args:
        settings: how it behaves.
        backend: where the codec runs; by default the one the settings name.
        traces: makes the spans of requests, if there are to be any.

    Raises:
        BackendUnavailable: the settings name a backend that cannot run here, or a budget that it cannot hold.
        ValueError, OSError: the token file cannot be used.
    """
    backend = backend or open_backend(settings.backend, settings.threads)
    budget = backend.memory_nbytes // 2 if settings.memory_budget is None else int(settings.memory_budget)
    # A body copied to the device, what becomes of it, and as much again for an answer; little machines have less.
    backend.limit_memory(budget, working=min(3 * int(settings.max_body), backend.memory_nbytes // 4))
    store = Store(budget)
    tally, work = RequestTally(), DeviceTally()
    device = Device(backend, settings.queue, tracing.device(work, traces))
    told = Metrics(Service(tally, work, device, store, [Memory(store)]))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        device.start(asyncio.get_running_loop())
        yield {UNREAD: watch.unread}
        device.stop()
        watch.flush()
        if traces:
            await tracing.close(traces)

    app = App(
        title="hadakv",
        version=__version__,
        summary=openapi.SUMMARY,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.context = Context(settings, backend, store, device, BodyReader(int(settings.max_body)), tally, told)
    app.router.routes.append(Route("/sessions/{id}/kv", kv.append, methods=["POST"]))
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(WholeIds)
    if settings.token_file:
        app.entrance = Gate(app.entrance, TokenFile(settings.token_file))
    app.entrance = watch = _watched(app, settings, tally, traces)
    return app


def _watched(app: App, settings: Settings, tally: RequestTally, traces: "TracerProvider | None") -> Watch:
    """What comes before everything else."""
    paths = [route.path for part in (app, *ROUTERS) for route in part.routes if isinstance(route, Route)]
    templates = Templates(paths)
    log = RequestLog(settings.log_form, settings.log_level, sys.stderr.buffer) if settings.access_log else None
    return Watch(tracing.middleware(app.entrance, templates, traces), templates, tally, log)
