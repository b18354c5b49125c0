"""Run the service: `python -m hadakv_service --help`."""

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from types import FrameType

import uvicorn
from pydantic import ByteSize, ValidationError

from hadakv_kernels import BackendUnavailable
from hadakv_service import __version__
from hadakv_service.app import Application, create_app
from hadakv_service.http.app_state import AppState
from hadakv_service.observability import logging_config
from hadakv_service.observability.tracing import provider_from_environment
from hadakv_service.server.malloc import keep_memory
from hadakv_service.server.server import Server
from hadakv_service.server.tls import tls_context
from hadakv_service.settings import parse_settings
from hadakv_service.storage.disk.interface import DiskStoreError
from hadakv_service.tenants.token_file import TokenFile

log = logging.getLogger(__name__)
# Exit status that shells use for an interrupted process.
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
    log.error("shutdown not finished after %g seconds: exiting now", seconds)
    os._exit(1)


def startup_line(service: AppState, address: str) -> str:
    """Return one line with the version, backend, address and budgets."""
    memory = ByteSize(service.store.memory.limit).human_readable()
    backend, disk = service.backend, service.store.disk
    disk_budget = f"disk budget {ByteSize(disk.budget).human_readable()}" if disk.budget else "disk disabled"
    return (
        f"hadakv {__version__}: {backend.name} backend ({backend.detail}), {address}, "
        f"memory budget {memory}, {disk_budget}"
    )


def main() -> None:
    """Read the settings, build the app, and serve until a signal arrives."""
    app, config = _prepare()
    _set_signal_handlers(reloads_tokens=app.state.tokens is not None)
    try:
        _Server(config, app.state.context, app.state.tokens).run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _prepare() -> tuple[Application, uvicorn.Config]:
    """Build the app and the configuration of its server, or exit with the reason in one line."""
    try:
        settings = parse_settings()
        logging_config.configure(settings.log_level, settings.effective_log_format)
        keep_memory()
        app = create_app(settings, traces=provider_from_environment())
        tls = tls_context(settings) if settings.tls_cert else None
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        sys.exit(f"hadakv: {reasons}")
    except (BackendUnavailable, DiskStoreError, ValueError, OSError) as error:
        sys.exit(f"hadakv: {error}")
    return app, _server_config(app, tls, settings.shutdown_timeout)


def _server_config(app: Application, tls: ssl.SSLContext | None, shutdown_timeout: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        # The server chooses the address and the protocol itself.
        ssl_context_factory=(lambda *_: tls) if tls else None,
        # uvicorn's loggers propagate to the root logger.
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        # Clients such as httpx keep idle connections for a while. If the server closed first, their next request
        # would fail.
        timeout_keep_alive=75,
        # A stalled client must not delay the shutdown, nor the final write to disk.
        timeout_graceful_shutdown=max(1, int(shutdown_timeout / 2)),
    )


def _set_signal_handlers(*, reloads_tokens: bool) -> None:
    # uvicorn raises the signal that stopped it again when it has shut down. Exit normally then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Shells start background processes with SIGINT ignored. Handle it nevertheless.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if reloads_tokens:
        # SIGHUP reloads the token file once the server runs. Until then the file is about to be read anyway.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


if __name__ == "__main__":
    main()
