"""Composition: build the parts of the service and its middleware stack."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_kernels import Backend, open_backend
from hadakv_service import __version__
from hadakv_service.asgi_extensions import RECORD_REJECTED, OpenWork
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.http import append_endpoint
from hadakv_service.http.app_state import AppState
from hadakv_service.http.append_endpoint import AppendDispatcher, AppendEndpoint
from hadakv_service.http.error_handlers import AnsweredErrorMiddleware, add_error_handlers
from hadakv_service.http.middleware.bearer_auth import BearerAuthMiddleware
from hadakv_service.http.middleware.concurrency_limit import ConcurrencyLimitMiddleware
from hadakv_service.http.middleware.encoded_slash import EncodedSlashMiddleware
from hadakv_service.http.middleware.host_origin import CorsMiddleware, HostOriginMiddleware
from hadakv_service.http.middleware.request_log import RequestLogMiddleware
from hadakv_service.http.openapi import document
from hadakv_service.http.request_body import BodyReader
from hadakv_service.http.routes import codec, docs, export_import, health, kv, metrics, sessions, truncate_fork
from hadakv_service.http.strict_route import head_routes, reject_queries
from hadakv_service.maintenance import (
    CloseProgress,
    close_store,
    open_disk_store,
    run_checkpoints,
    run_periodically,
)
from hadakv_service.observability import tracing
from hadakv_service.observability.access_log import AccessLog
from hadakv_service.observability.counters import DeviceCounters, RequestCounters
from hadakv_service.observability.prometheus import Metrics, MetricSources
from hadakv_service.observability.request_record import RouteTemplates
from hadakv_service.observability.tier_gauges import DiskTierGauges, MemoryTierGauges
from hadakv_service.operations.files.import_session import Importer
from hadakv_service.operations.files.spool import SpoolDirectory
from hadakv_service.sessions.session import Session
from hadakv_service.settings import Settings
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.tenants.quotas import Quota, QuotaTable
from hadakv_service.tenants.token_file import TokenFile
from hadakv_service.wire.sending_budget import SendingBudget

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ROUTERS = (
    *(kv.router, sessions.router, truncate_fork.router, export_import.router),
    *(codec.router, health.router, metrics.router),
)

# Paths that need no token.
OPEN_PATHS = health.OPEN_PATHS | docs.OPEN_PATHS


class Application:
    """The service as an ASGI app: a middleware stack around FastAPI.

    It is not FastAPI itself, whose `__call__` reads the environment for telemetry on each request: 10 µs, a fifth of
    the time that a small append takes.

    Attributes:
        fastapi: the routes, their error handlers and the OpenAPI document.
        state: FastAPI's state; `context` has the parts of the service, `tokens` the token file or None.
    """

    def __init__(self, fastapi: FastAPI, stack: ASGIApp) -> None:
        self.fastapi = fastapi
        self.state = fastapi.state
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or the lifespan."""
        await self._stack(scope, receive, send)


def create_app(
    settings: Settings,
    backend: Backend | None = None,
    traces: "TracerProvider | None" = None,
    progress: CloseProgress | None = None,
) -> Application:
    """Build the service as an ASGI app.

    Args:
        settings: flags and environment variables.
        backend: runs the codec; by default the one that the settings name.
        traces: receives spans; by default there are none.
        progress: is told what is written to disk at the end.

    Raises:
        BackendUnavailable: the backend cannot run here, or cannot hold the memory budget.
        ValueError, OSError: the token file or the data directory cannot be used.
        DataDirectoryError: the data directory is in use, or another version wrote it.
    """
    backend = backend or open_backend(settings.backend, settings.threads, settings.gpu_min_rows)
    tenant_nbytes = None if settings.tenant_quota is None else int(settings.tenant_quota)
    quotas = QuotaTable(Quota(tenant_nbytes, settings.tenant_sessions))
    state = _build_parts(settings, backend, quotas, traces)
    device, store = state.device, state.store

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        device.start(asyncio.get_running_loop())
        background = [asyncio.create_task(run(device, store)) for run in (run_periodically, run_checkpoints)]
        yield {RECORD_REJECTED: request_log.record_rejected}
        for task in background:
            task.cancel()
        # Requests in progress may have taken half of the time allowed for the shutdown.
        deadline = getattr(app.state, "ends_at", time.monotonic() + settings.shutdown_timeout / 2)
        device.stop(lambda: close_store(store, deadline, progress))
        request_log.flush()
        if traces:
            await tracing.close(traces)

    append = AppendEndpoint(state)
    fastapi = _build_routes(append, lifespan)
    fastapi.state.context = state
    fastapi.state.tokens = TokenFile(settings.token_file, quotas) if settings.token_file else None
    request_log = build_middleware(fastapi, append, traces)
    return Application(fastapi, request_log)


def _build_parts(settings: Settings, backend: Backend, quotas: QuotaTable, traces: "TracerProvider | None") -> AppState:
    """Make the parts that the handlers of requests need."""
    request_counters, device_counters = RequestCounters(), DeviceCounters()
    store = _open_store(settings, backend, quotas)
    observer = tracing.observe_device(device_counters, traces)
    device = DeviceExecutor(backend, settings.max_queued_jobs, observer, store.group_commit)
    sending = SendingBudget(int(settings.max_sending), lambda: store.pool.held.uncounted)
    open_work = OpenWork()
    durability = settings.durability if store.disk.budget else "memory"
    new_session = Session(ttl_seconds=settings.ttl_seconds, durability=durability)
    sources = MetricSources(
        requests=request_counters,
        jobs=device_counters,
        device=device,
        store=store,
        tiers=_tier_gauges(store),
        sending=sending,
        connections=lambda: len(open_work.connections),
    )
    return AppState(
        settings=settings,
        backend=backend,
        store=store,
        device=device,
        bodies=BodyReader(int(settings.max_body), settings.max_body_memory),
        sending=sending,
        importer=_open_importer(settings, store, device, new_session),
        new_session=new_session,
        counters=request_counters,
        metrics=Metrics(sources),
        open_work=open_work,
    )


def _open_store(settings: Settings, backend: Backend, quotas: QuotaTable) -> SessionStore:
    """Open the disk store and make the session store above it."""
    budget = backend.memory_nbytes // 2 if settings.memory_budget is None else int(settings.memory_budget)
    # The device needs memory for a body, for its encoded tokens, and for a response of the same size. On small
    # machines that would be too much.
    backend.limit_memory(budget, working=min(3 * int(settings.max_body), backend.memory_nbytes // 4))
    return SessionStore(
        budget,
        disk=open_disk_store(settings),
        backend=backend,
        quotas=quotas,
        checkpoint_seconds=settings.checkpoint_seconds,
    )


def _open_importer(settings: Settings, store: SessionStore, device: DeviceExecutor, new_session: Session) -> Importer:
    spools = SpoolDirectory(settings.data_dir) if store.disk.budget else None
    return Importer(store, device, new_session, spools, max_in_memory=int(settings.max_body))


def _tier_gauges(store: SessionStore) -> list[MemoryTierGauges | DiskTierGauges]:
    """Return the gauges of memory, and of the disk if the service uses it."""
    return [MemoryTierGauges(store), *([DiskTierGauges(store)] if store.disk.budget else [])]


def _build_routes(append: AppendEndpoint, lifespan: Callable[[FastAPI], Any]) -> FastAPI:
    """Make the FastAPI app with every route, error handler and the OpenAPI document."""
    app = FastAPI(
        title="hadakv",
        version=__version__,
        summary=document.SUMMARY,
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's own pages load scripts from the internet. routes/docs.py serves them locally.
        docs_url=None,
        redoc_url=None,
    )
    # The dispatcher calls this endpoint directly. As a route it also gets paths with percent-encoding, and FastAPI
    # knows its method.
    app.router.routes.append(Route(append_endpoint.ROUTE, append, methods=["POST"]))
    app.router.routes.extend(docs.ROUTES)
    for router in ROUTERS:
        app.include_router(router)
    reject_queries(app.routes)
    app.router.routes.extend(head_routes(route for router in ROUTERS for route in router.routes))
    add_error_handlers(app)
    document.extend_openapi(app)
    return app


def build_middleware(fastapi: FastAPI, append: AppendEndpoint, traces: "TracerProvider | None") -> RequestLogMiddleware:
    """Wrap FastAPI in the middleware stack.

    Args:
        fastapi: the innermost app, with its routes and state.
        append: the endpoint of appends.
        traces: receives a span per request, if given.
    """
    state: AppState = fastapi.state.context
    settings = state.settings
    templates = RouteTemplates(
        route.path for part in (fastapi, *ROUTERS) for route in part.routes if isinstance(route, Route)
    )
    access_log = (
        AccessLog(settings.effective_log_format, settings.log_level, sys.stderr.buffer) if settings.access_log else None
    )
    hosts = None if settings.uds else (settings.host, *settings.allowed_hosts)
    origins = settings.allowed_origins
    # Outermost first.
    stack = [
        Middleware(
            RequestLogMiddleware, templates, state.counters, access_log, lambda: hasattr(fastapi.state, "ends_at")
        ),
        *([tracing_middleware(templates, traces)] if traces else []),
        Middleware(HostOriginMiddleware, hosts, origins),
        *([Middleware(CorsMiddleware, origins)] if origins else []),
        *([Middleware(BearerAuthMiddleware, fastapi.state.tokens, OPEN_PATHS)] if fastapi.state.tokens else []),
        Middleware(ConcurrencyLimitMiddleware, settings.max_requests),
        Middleware(AppendDispatcher, append),
        Middleware(EncodedSlashMiddleware),
        Middleware(AnsweredErrorMiddleware),
    ]
    app: ASGIApp = fastapi
    for middleware, args, options in reversed(stack):
        app = middleware(app, *args, **options)
    assert isinstance(app, RequestLogMiddleware)
    return app


def tracing_middleware(templates: RouteTemplates, traces: "TracerProvider") -> Middleware:
    """Return the middleware that makes a span per request."""
    # Not imported without traces: it imports OpenTelemetry.
    from hadakv_service.http.middleware.tracing import TracingMiddleware

    return Middleware(TracingMiddleware, templates, traces.get_tracer(tracing.TRACER_NAME))
