"""Run the service: `python -m hadakv_service --help`."""

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn
from pydantic import ByteSize, ValidationError
from pydantic_settings import CliApp

from hadakv_kernels import BackendUnavailable
from hadakv_service import __version__
from hadakv_service.allocator import keep_memory
from hadakv_service.app import create_app
from hadakv_service.context import Context
from hadakv_service.settings import Settings
from hadakv_service.tiers import TierRefused
from hadakv_service.whole import WholeProtocol

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, service: Context) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What was made until now stays; looking through it again and again would only hold up requests.
            gc.collect()
            gc.freeze()
            print(startup_line(self._service, self._address()), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            app = self.config.app
            grace = self._service.settings.grace
            app.state.ends_at = time.monotonic() + 0.9 * grace  # type: ignore[union-attr]  # it is ours
            # Whatever hangs, in a driver say: what is on disk is whole at any moment, the rest was promised to nobody.
            threading.Thread(target=_end_after, args=(grace,), daemon=True).start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Else what is frozen would never be taken apart, and extension modules report that as leaks.
        gc.unfreeze()
        await super().shutdown(sockets)

    def _address(self) -> str:
        if self._service.settings.uds:
            return f"unix:{self._service.settings.uds}"
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    log.error("did not end within %g seconds; ending now", seconds)
    os._exit(1)


def startup_line(service: Context, address: str) -> str:
    """Version, backend, address and budget in one line."""
    budget = ByteSize(service.store.ledger.budget).human_readable()
    backend, tier = service.backend, service.store.tier
    below = f"disk budget {ByteSize(tier.budget).human_readable()}" if tier.budget else "nothing on disk"
    return (
        f"hadakv {__version__}: {backend.name} backend ({backend.detail}), {address}, memory budget {budget}, {below}"
    )


def main() -> None:
    """Read the settings, make the app, serve until told to stop."""
    try:
        settings = CliApp.run(Settings)
        logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
        keep_memory()
        app = create_app(settings)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        sys.exit(f"hadakv: {reasons}")
    except (BackendUnavailable, TierRefused, ValueError, OSError) as error:
        sys.exit(f"hadakv: {error}")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        uds=str(settings.uds) if settings.uds else None,
        loop="uvloop",
        http=WholeProtocol,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        # Clients such as httpx keep idle connections for a while; closing first would break their next request.
        timeout_keep_alive=75,
        # A sender that has stalled must not keep the service from stopping, nor from writing what it has.
        timeout_graceful_shutdown=max(1, int(settings.grace / 2)),
    )
    # Uvicorn raises the signal that stopped it once more at the end; then this ends the process in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _Server(config, app.state.context).run()


if __name__ == "__main__":
    main()
