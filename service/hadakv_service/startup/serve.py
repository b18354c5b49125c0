"""The running service: its app, its server, its signals and its startup line."""

import logging
import os
import signal
import ssl
import sys
from functools import partial

import uvicorn
from pydantic import ByteSize

from hadakv_kernels import BackendUnavailable
from hadakv_service import __version__
from hadakv_service.app import Application, create_app
from hadakv_service.http.app_state import AppState
from hadakv_service.observability import logging_config
from hadakv_service.observability.tracing import provider_from_environment
from hadakv_service.server.malloc import keep_memory
from hadakv_service.server.server import EXIT_INTERRUPTED, Server
from hadakv_service.server.tls import tls_context
from hadakv_service.settings import Settings
from hadakv_service.startup.warnings import setting_warnings
from hadakv_service.storage.disk.interface import DiskStoreError

log = logging.getLogger(__name__)


def startup_line(service: AppState, address: str) -> str:
    """Return one line with the version, backend, address and budgets."""
    memory = ByteSize(service.store.memory.limit).human_readable()
    backend, disk = service.backend, service.store.disk
    disk_budget = f"disk budget {ByteSize(disk.budget).human_readable()}" if disk.budget else "disk disabled"
    if disk.used > disk.budget:
        disk_budget += f" (exceeded: {ByteSize(disk.used).human_readable()} stored)"
    return (
        f"hadakv {__version__}: {backend.name} backend ({backend.detail}), {address}, "
        f"memory budget {memory}, {disk_budget}"
    )


def _print_startup_line(service: AppState, address: str) -> None:
    print(startup_line(service, address), flush=True)


def serve(settings: Settings) -> None:
    """Build the app, and serve until a signal arrives.

    Raises:
        SystemExit: with the reason if the service cannot start, with 130 after Ctrl-C.
    """
    app, config = _prepare(settings)
    _set_signal_handlers(reloads_tokens=app.state.tokens is not None)
    state: AppState = app.state.context
    try:
        Server(config, state.settings, partial(_print_startup_line, state), app.state.tokens).run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _prepare(settings: Settings) -> tuple[Application, uvicorn.Config]:
    """Build the app and the configuration of its server, or exit with the reason in one line."""
    try:
        logging_config.configure(settings.log_level, settings.effective_log_format)
        for warning in setting_warnings(settings, os.environ):
            log.warning("%s", warning)
        keep_memory()
        app = create_app(settings, traces=provider_from_environment())
        tls = tls_context(settings) if settings.tls_cert else None
    except (BackendUnavailable, DiskStoreError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            sys.exit(f"hadakv: cannot read {error.filename}: {error.strerror}")
        sys.exit(f"hadakv: {error}")
    return app, _server_config(app, tls, settings.shutdown_timeout)


def _server_config(app: Application, tls: ssl.SSLContext | None, shutdown_timeout: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        # The service has no WebSockets. With --http-protocol uvicorn, treat offers of them as ordinary requests.
        ws="none",
        # `Server` takes the address to listen on and the protocol from the settings.
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
