"""Run the service: `python -m hadakv_service --help`."""

import asyncio
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
from hadakv_service.app import create_app
from hadakv_service.http.app_state import AppState
from hadakv_service.observability import logging_config
from hadakv_service.observability.tracing import provider_from_environment
from hadakv_service.server.malloc import keep_memory
from hadakv_service.server.server import Server
from hadakv_service.server.tls import tls_context
from hadakv_service.settings import Settings
from hadakv_service.storage.disk.interface import DiskStoreError
from hadakv_service.tenants.token_file import TokenFile

log = logging.getLogger(__name__)
# As shells have it for who was interrupted.
INTERRUPTED = 128 + signal.SIGINT


class _Server(Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, service: AppState, tokens: TokenFile | None) -> None:
        super().__init__(config, service.settings)
        self._service = service
        self._tokens = tokens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._tokens:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._tokens.reload)
            # What was made until now stays; looking through it again and again would only hold up requests.
            gc.collect()
            gc.freeze()
            print(startup_line(self._service, self._address()), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            app = self.config.app
            grace = self._service.settings.shutdown_timeout
            app.state.ends_at = time.monotonic() + 0.9 * grace  # type: ignore[union-attr]  # it is ours
            # Whatever hangs, in a driver say: what is on disk is whole at any moment, the rest was promised to nobody.
            threading.Thread(target=_end_after, args=(grace,), daemon=True).start()
        elif sig == signal.SIGINT:
            log.warning("asked to end twice: ending at once; sessions that are not on disk yet are lost")
            os._exit(INTERRUPTED)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Else what is frozen would never be taken apart, and extension modules report that as leaks.
        gc.unfreeze()
        await super().shutdown(sockets)

    def _address(self) -> str:
        if self._service.settings.uds:
            return f"unix:{self._service.settings.uds}"
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    log.error("did not end within %g seconds; ending now", seconds)
    os._exit(1)


def startup_line(service: AppState, address: str) -> str:
    """Version, backend, address and budget in one line."""
    budget = ByteSize(service.store.memory.limit).human_readable()
    backend, tier = service.backend, service.store.disk
    below = f"disk budget {ByteSize(tier.budget).human_readable()}" if tier.budget else "nothing on disk"
    return (
        f"hadakv {__version__}: {backend.name} backend ({backend.detail}), {address}, memory budget {budget}, {below}"
    )


def main() -> None:
    """Read the settings, make the app, serve until told to stop."""
    try:
        settings = CliApp.run(Settings)
        logging_config.configure(settings.log_level, settings.log_form)
        keep_memory()
        app = create_app(settings, traces=provider_from_environment())
        tls = tls_context(settings) if settings.tls_cert else None
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        sys.exit(f"hadakv: {reasons}")
    except (BackendUnavailable, DiskStoreError, ValueError, OSError) as error:
        sys.exit(f"hadakv: {error}")
    config = uvicorn.Config(
        app,
        loop="uvloop",
        # Where it listens, and with which protocol, is the listener's matter.
        ssl_context_factory=(lambda *_: tls) if tls else None,
        # Its loggers hand on to ours.
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        # Clients such as httpx keep idle connections for a while; closing first would break their next request.
        timeout_keep_alive=75,
        # A sender that has stalled must not keep the service from stopping, nor from writing what it has.
        timeout_graceful_shutdown=max(1, int(settings.shutdown_timeout / 2)),
    )
    # Uvicorn raises the signal that stopped it once more at the end; then this ends the process in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A shell lets what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if app.state.tokens:
        # From now on this says that the file is to be read again; until the service is there, it is about to be.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _Server(config, app.state.context, app.state.tokens).run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
