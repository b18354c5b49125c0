"""Run the service: `python -m hadakv_service --help`."""

import signal
import sys
from functools import partial

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
from hadakv_service.server.server import EXIT_INTERRUPTED, Server
from hadakv_service.server.tls import tls_context
from hadakv_service.settings import Settings
from hadakv_service.storage.disk.interface import DiskStoreError


def startup_line(service: AppState, address: str) -> str:
    """Version, backend, address and budget in one line."""
    budget = ByteSize(service.store.memory.limit).human_readable()
    backend, tier = service.backend, service.store.disk
    below = f"disk budget {ByteSize(tier.budget).human_readable()}" if tier.budget else "nothing on disk"
    return (
        f"hadakv {__version__}: {backend.name} backend ({backend.detail}), {address}, memory budget {budget}, {below}"
    )


def _print_startup_line(service: AppState, address: str) -> None:
    print(startup_line(service, address), flush=True)


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
        # The service has no WebSockets. With --http-protocol uvicorn, treat offers of them as ordinary requests.
        ws="none",
        # `Server` takes the address to listen on and the protocol from the settings.
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
        timeout_graceful_shutdown=max(1, int(settings.grace / 2)),
    )
    # Uvicorn raises the signal that stopped it once more at the end; then this ends the process in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A shell lets what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if app.state.tokens:
        # From now on this says that the file is to be read again; until the service is there, it is about to be.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Server(config, settings, partial(_print_startup_line, app.state.context), app.state.tokens).run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
