"""Puts the parts together into an ASGI app."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from hadakv_kernels import Backend, open_backend
from hadakv_service import __version__, openapi, problems
from hadakv_service.auth import Gate, TokenFile
from hadakv_service.body import BodyReader
from hadakv_service.context import Context, WholeIds
from hadakv_service.crowd import Crowd
from hadakv_service.device import Device
from hadakv_service.quota import Quota, Quotas
from hadakv_service.routes import branches, codec, files, health, kv, sessions
from hadakv_service.session import Session
from hadakv_service.settings import Settings
from hadakv_service.shortcut import App
from hadakv_service.sites import Sites, with_permission
from hadakv_service.store import Store
from hadakv_service.upkeep import close, open_tier, tend


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """The service as an app.

    Args:
        settings: how it behaves.
        backend: where the codec runs; by default the one the settings name.

    Raises:
        BackendUnavailable: the settings name a backend that cannot run here, or a budget that it cannot hold.
        ValueError, OSError: the token file, or the data directory, cannot be used.
        TierRefused: what is in the data directory is not for this version, or in use.
    """
    backend = backend or open_backend(settings.backend, settings.threads)
    budget = backend.memory_nbytes // 2 if settings.memory_budget is None else int(settings.memory_budget)
    # A body copied to the device, what becomes of it, and as much again for an answer; little machines have less.
    backend.limit_memory(budget, working=min(3 * int(settings.max_body), backend.memory_nbytes // 4))
    tenant_nbytes = None if settings.tenant_quota is None else int(settings.tenant_quota)
    quotas = Quotas(Quota(tenant_nbytes, settings.tenant_sessions))
    tier = open_tier(settings)
    store = Store(budget, tier=tier, backend=backend, quotas=quotas)
    device = Device(backend, settings.queue, store.settle)
    new = Session(ttl_seconds=settings.ttl_seconds, durability=settings.durability if tier.budget else "memory")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        device.start(asyncio.get_running_loop())
        tending = asyncio.create_task(tend(device, store))
        yield
        tending.cancel()
        # Half of what was given for it may have gone to requests under way.
        until = getattr(app.state, "ends_at", time.monotonic() + settings.grace / 2)
        device.stop(lambda: close(store, until))

    app = App(
        title="hadakv",
        version=__version__,
        summary=openapi.SUMMARY,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    bodies = BodyReader(int(settings.max_body), settings.max_receiving)
    app.state.context = Context(settings, backend, store, device, bodies, new)
    app.router.routes.append(Route("/sessions/{id}/kv", kv.append, methods=["POST"]))
    for router in (kv.router, sessions.router, branches.router, files.router, codec.router, health.router):
        app.include_router(router)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(WholeIds)
    _guard(app, settings, quotas)
    return app


def _guard(app: App, settings: Settings, quotas: Quotas) -> None:
    """Put before the app whoever turns strangers away, the last one outermost."""
    app.entrance = Crowd(app.entrance, settings.max_requests)
    app.state.tokens = TokenFile(settings.token_file, quotas) if settings.token_file else None
    if app.state.tokens:
        app.entrance = Gate(app.entrance, app.state.tokens)
    if settings.allowed_origins:
        app.entrance = with_permission(app.entrance, settings.allowed_origins)
    hosts = None if settings.uds else (settings.host, *settings.allowed_hosts)
    app.entrance = Sites(app.entrance, hosts, settings.allowed_origins)
