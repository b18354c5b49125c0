"""Puts the parts together into an ASGI app."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.routing import Route

from hadakv_kernels import Backend, open_backend
from hadakv_service import __version__
from hadakv_service.asgi_extensions import RECORD_REJECTED
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.http import error_handlers
from hadakv_service.http.app_state import AppState
from hadakv_service.http.append_endpoint import App
from hadakv_service.http.middleware.bearer_auth import BearerAuthMiddleware
from hadakv_service.http.middleware.concurrency_limit import ConcurrencyLimitMiddleware
from hadakv_service.http.middleware.encoded_slash import EncodedSlashMiddleware
from hadakv_service.http.middleware.host_origin import HostOriginMiddleware, add_cors
from hadakv_service.http.middleware.request_log import RequestLogMiddleware
from hadakv_service.http.openapi import document
from hadakv_service.http.request_body import BodyReader
from hadakv_service.http.routes import codec, docs, export_import, health, kv, metrics, sessions, truncate_fork
from hadakv_service.maintenance import close_store, open_disk_store, run_periodically
from hadakv_service.observability import tracing
from hadakv_service.observability.access_log import AccessLog
from hadakv_service.observability.counters import DeviceCounters, RequestCounters
from hadakv_service.observability.prometheus import DiskTierGauges, MemoryTierGauges, Metrics, Service
from hadakv_service.observability.request_record import RouteTemplates
from hadakv_service.sessions.session import Session
from hadakv_service.settings import Settings
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.tenants.quotas import Quota, QuotaTable
from hadakv_service.tenants.token_file import TokenFile

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ROUTERS = (
    *(kv.router, sessions.router, truncate_fork.router, export_import.router),
    *(codec.router, health.router, metrics.router),
)


def create_app(settings: Settings, backend: Backend | None = None, traces: "TracerProvider | None" = None) -> FastAPI:
    """The service as an app.

    Args:
        settings: how it behaves.
        backend: where the codec runs; by default the one the settings name.
        traces: where spans go; nowhere by default.

    Raises:
        BackendUnavailable: the settings name a backend that cannot run here, or a budget that it cannot hold.
        ValueError, OSError: the token file, or the data directory, cannot be used.
        TierRefused: what is in the data directory is not for this version, or in use.
    """
    backend = backend or open_backend(settings.backend, settings.threads)
    tally, work = RequestCounters(), DeviceCounters()
    tenant_nbytes = None if settings.tenant_quota is None else int(settings.tenant_quota)
    quotas = QuotaTable(Quota(tenant_nbytes, settings.tenant_sessions))
    store = _store(settings, backend, quotas)
    device = DeviceExecutor(backend, settings.queue, tracing.observe_device(work, traces), store.group_commit)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        device.start(asyncio.get_running_loop())
        tending = asyncio.create_task(run_periodically(device, store))
        yield {RECORD_REJECTED: witness.record_rejected}
        tending.cancel()
        # Half of what was given for it may have gone to requests under way.
        until = getattr(app.state, "ends_at", time.monotonic() + settings.grace / 2)
        device.stop(lambda: close_store(store, until))
        witness.flush()
        if traces:
            await tracing.close(traces)

    app = App(
        title="hadakv",
        version=__version__,
        summary=document.SUMMARY,
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's own pages fetch their scripts from the net.
        docs_url=None,
        redoc_url=None,
    )
    told = Metrics(
        Service(
            tally,
            work,
            device,
            store,
            [MemoryTierGauges(store), *([DiskTierGauges(store)] if store.disk.budget else [])],
        )
    )
    bodies = BodyReader(int(settings.max_body), settings.max_receiving)
    durability = settings.durability if store.disk.budget else "memory"
    new = Session(ttl_seconds=settings.ttl_seconds, durability=durability)
    app.state.context = AppState(settings, backend, store, device, bodies, new, tally, told)
    app.router.routes.append(Route("/sessions/{id}/kv", kv.append, methods=["POST"]))
    app.router.routes.extend(docs.ROUTES)
    for router in ROUTERS:
        app.include_router(router)
    error_handlers.install(app)
    document.install(app)
    app.add_middleware(EncodedSlashMiddleware)
    _guard(app, settings, quotas)
    app.entrance = witness = _witnessed(app, settings, tally, traces)
    return app


def _store(settings: Settings, backend: Backend, quotas: QuotaTable) -> SessionStore:
    """Sessions in memory, and what lies below."""
    budget = backend.memory_nbytes // 2 if settings.memory_budget is None else int(settings.memory_budget)
    # A body copied to the device, what becomes of it, and as much again for an answer; little machines have less.
    backend.limit_memory(budget, working=min(3 * int(settings.max_body), backend.memory_nbytes // 4))
    return SessionStore(budget, disk=open_disk_store(settings), backend=backend, quotas=quotas)


def _guard(app: App, settings: Settings, quotas: QuotaTable) -> None:
    """Put before the app whoever turns strangers away, the last one outermost."""
    app.entrance = ConcurrencyLimitMiddleware(app.entrance, settings.max_requests)
    app.state.tokens = TokenFile(settings.token_file, quotas) if settings.token_file else None
    if app.state.tokens:
        app.entrance = BearerAuthMiddleware(app.entrance, app.state.tokens)
    if settings.allowed_origins:
        app.entrance = add_cors(app.entrance, settings.allowed_origins)
    hosts = None if settings.uds else (settings.host, *settings.allowed_hosts)
    app.entrance = HostOriginMiddleware(app.entrance, hosts, settings.allowed_origins)


def _witnessed(
    app: App, settings: Settings, tally: RequestCounters, traces: "TracerProvider | None"
) -> RequestLogMiddleware:
    """What comes before everything else."""
    paths = [route.path for part in (app, *ROUTERS) for route in part.routes if isinstance(route, Route)]
    templates = RouteTemplates(paths)
    log = AccessLog(settings.log_form, settings.log_level, sys.stderr.buffer) if settings.access_log else None
    traced = tracing.add_tracing(app.entrance, templates, traces)
    return RequestLogMiddleware(traced, templates, tally, log, lambda: hasattr(app.state, "ends_at"))
