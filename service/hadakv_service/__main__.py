"""Run the service: `python -m hadakv_service --help`."""

import gc
import signal
import socket
import sys

import uvicorn
from pydantic import ByteSize, ValidationError
from pydantic_settings import CliApp

from hadakv_kernels import BackendUnavailable
from hadakv_service import __version__, logs
from hadakv_service.allocator import keep_memory
from hadakv_service.app import create_app
from hadakv_service.context import Context
from hadakv_service.settings import Settings
from hadakv_service.tracing import provider_from_environment
from hadakv_service.whole import WholeProtocol


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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Else what is frozen would never be taken apart, and extension modules report that as leaks.
        gc.unfreeze()
        await super().shutdown(sockets)

    def _address(self) -> str:
        if self._service.settings.uds:
            return f"unix:{self._service.settings.uds}"
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def startup_line(service: Context, address: str) -> str:
    """Version, backend, address and budget in one line."""
    budget = ByteSize(service.store.ledger.budget).human_readable()
    backend = service.backend
    return f"hadakv {__version__}: {backend.name} backend ({backend.detail}), {address}, memory budget {budget}"


def main() -> None:
    """Read the settings, make the app, serve until told to stop."""
    try:
        settings = CliApp.run(Settings)
        logs.configure(settings.log_level, settings.log_form)
        keep_memory()
        app = create_app(settings, traces=provider_from_environment())
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        sys.exit(f"hadakv: {reasons}")
    except (BackendUnavailable, ValueError, OSError) as error:
        sys.exit(f"hadakv: {error}")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        uds=str(settings.uds) if settings.uds else None,
        loop="uvloop",
        http=WholeProtocol,
        # Its loggers hand on to ours.
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        # Clients such as httpx keep idle connections for a while; closing first would break their next request.
        timeout_keep_alive=75,
        # A sender that has stalled must not keep the service from stopping.
        timeout_graceful_shutdown=10,
    )
    # Uvicorn raises the signal that stopped it once more at the end; then this ends the process in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _Server(config, app.state.context).run()


if __name__ == "__main__":
    main()
