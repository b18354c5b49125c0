"""Puts the parts together into an ASGI app."""

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import ByteSize
from starlette.routing import Route

from hadakv_kernels import Backend, open_backend
from hadakv_service import __version__, openapi, problems
from hadakv_service.auth import Gate, TokenFile
from hadakv_service.body import BodyReader
from hadakv_service.context import Context, WholeIds
from hadakv_service.device import Device
from hadakv_service.errors import Busy
from hadakv_service.routes import branches, codec, health, kv, sessions
from hadakv_service.session import Session
from hadakv_service.settings import Settings
from hadakv_service.shortcut import App
from hadakv_service.store import Store
from hadakv_service.tiers import Tier
from hadakv_service.tiers.none import NoTier
from hadakv_service.tiers.sqlite import SqliteTier

log = logging.getLogger(__name__)

TEND_SECONDS = 30.0


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
    tier = open_tier(settings)
    store = Store(budget, tier=tier, backend=backend)
    device = Device(backend, settings.queue, store.settle)
    new = Session(ttl_seconds=settings.ttl_seconds, durability=settings.durability if tier.budget else "memory")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        device.start(asyncio.get_running_loop())
        tending = asyncio.create_task(_tend(device, store))
        yield
        tending.cancel()
        # Half of what was given for it may have gone to requests under way.
        until = getattr(app.state, "ends_at", time.monotonic() + settings.grace / 2)
        device.stop(lambda: _close(store, until))

    app = App(
        title="hadakv",
        version=__version__,
        summary=openapi.SUMMARY,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.context = Context(settings, backend, store, device, BodyReader(int(settings.max_body)), new)
    app.router.routes.append(Route("/sessions/{id}/kv", kv.append, methods=["POST"]))
    for router in (kv.router, sessions.router, branches.router, codec.router, health.router):
        app.include_router(router)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(WholeIds)
    if settings.token_file:
        app.entrance = Gate(app.entrance, TokenFile(settings.token_file))
    return app


def open_tier(settings: Settings) -> Tier:
    """What lies below memory.

    Raises:
        TierRefused, OSError: as for `create_app`.
    """
    if settings.disk_budget == 0:
        return NoTier()
    budget = settings.disk_budget
    if budget is None:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        budget = ByteSize(shutil.disk_usage(settings.data_dir).free // 2)
    return SqliteTier(settings.data_dir, int(budget))


async def _tend(device: Device, store: Store) -> None:
    """Let the store forget who has expired, and so on, now and then."""
    while True:
        await asyncio.sleep(TEND_SECONDS)
        try:
            await device.call(store.tend)
        except Busy:
            continue
        except Exception:
            log.exception("what has to be done now and then was not")


def _close(store: Store, until: float) -> None:
    left = store.close(until)
    if left:
        log.warning("%d sessions were not written to disk in time", left)
