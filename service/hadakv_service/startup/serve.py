"""The running service: its app, its server and its signals."""

import logging
import os
import ssl
import sys
from functools import partial

import uvicorn

from hadakv_kernels import BackendUnavailable
from hadakv_service.app import Application, create_app
from hadakv_service.observability import logging_config
from hadakv_service.observability.tracing import provider_from_environment
from hadakv_service.server.hangup import EXIT_INTERRUPTED, HangUp
from hadakv_service.server.malloc import keep_memory
from hadakv_service.server.server import Server
from hadakv_service.server.tls import tls_context
from hadakv_service.settings import Settings
from hadakv_service.startup.console import Console
from hadakv_service.startup.warnings import setting_warnings
from hadakv_service.storage.disk.interface import DiskStoreError

log = logging.getLogger(__name__)


def serve(settings: Settings, hang_up: HangUp) -> None:
    """Build the app, and serve until a signal arrives.

    Raises:
        SystemExit: with the reason if the service cannot start, with 130 after Ctrl-C.
    """
    console = Console(is_quiet=settings.quiet)
    try:
        app, config = _prepare(settings, console)
        on_listening = partial(console.on_listening, app.state.context)
        Server(config, settings, hang_up, on_listening, console.on_waiting, app.state.tokens).run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _prepare(settings: Settings, console: Console) -> tuple[Application, uvicorn.Config]:
    """Build the app and the configuration of its server, or exit with the reason in one line."""
    try:
        logging_config.configure(settings.log_level, settings.effective_log_format)
        for warning in setting_warnings(settings, os.environ):
            log.warning("%s", warning)
        keep_memory()
        app = create_app(settings, traces=provider_from_environment(), progress=console)
        tls = tls_context(settings) if settings.tls_cert else None
    except (BackendUnavailable, DiskStoreError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            sys.exit(f"hadakv: cannot read {error.filename}: {error.strerror}")
        sys.exit(f"hadakv: {error}")
    return app, _server_config(app, tls)


def _server_config(app: Application, tls: ssl.SSLContext | None) -> uvicorn.Config:
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
    )
