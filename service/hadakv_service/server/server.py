"""uvicorn's server with hadakv's sockets, connections and shutdown."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from hadakv_service.asgi_extensions import OpenWork
from hadakv_service.server.connection_monitor import ConnectionMonitor
from hadakv_service.server.hangup import EXIT_INTERRUPTED, HangUp
from hadakv_service.server.protocol import HttpProtocol
from hadakv_service.server.sockets import bind_unix, inode, listen_error, raise_open_file_limit
from hadakv_service.server.timeouts import Limits
from hadakv_service.settings import Settings
from hadakv_service.tenants.token_file import TokenFile

log = logging.getLogger(__name__)

# Seconds to wait for the peer's TLS closing message.
TLS_SHUTDOWN_SECONDS = 5
# Maximum time in which cancelled requests send their last response.
CANCEL_SECONDS = 1.0

ProtocolFactory = Callable[[], asyncio.Protocol]


class Server(uvicorn.Server):
    """Server that listens on TCP or a Unix socket, limits connections, and shuts down within a time limit.

    Args:
        config: uvicorn's configuration. Its app is a FastAPI application.
        settings: where to listen, and the limits for connections.
        hang_up: handler of SIGHUP.
        on_listening: called with the address once the server listens.
        on_waiting: called with the number of requests in progress that the shutdown waits for, the maximum time in
            seconds, and whether Ctrl-C was the reason. It may run in a signal handler.
        tokens: token file to reload on SIGHUP.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        hang_up: HangUp,
        on_listening: Callable[[str], None],
        on_waiting: Callable[[int, float, bool], None],
        tokens: TokenFile | None = None,
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._hang_up = hang_up
        self._on_listening = on_listening
        self._on_waiting = on_waiting
        self._tokens = tokens
        self._monitor: ConnectionMonitor | None = None
        self._inode: int | None = None
        self._is_stopping = False

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals until the end of the block."""
        # uvicorn raises the signal that stopped it again when it has shut down. Exit normally then.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with super().capture_signals():
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Start the application, then listen. Exit with a one-line reason if one of the two fails."""
        open_work: OpenWork = self.config.app.state.context.open_work  # type: ignore[union-attr]  # a FastAPI app
        open_work.connections, open_work.requests = self.server_state.connections, self.server_state.tasks
        loop = asyncio.get_running_loop()
        reload = self._tokens.reload if self._tokens else None
        self._hang_up.handle(loop, lambda: self.handle_exit(signal.SIGHUP, None), reload)
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        try:
            self.servers = [await self._listen(loop, self._protocol_factory(loop))]
        except OSError as error:
            await self.lifespan.shutdown()
            sys.exit(f"hadakv: {error}")
        if self._monitor:
            self._monitor.start()
        self.started = True
        # Objects made so far live until the end. Do not scan them in each garbage collection, which delays requests.
        gc.collect()
        gc.freeze()
        self._on_listening(self._address())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for open requests, then stop the application."""
        # Frozen objects would never be freed, which extension modules report as leaks.
        gc.unfreeze()
        await super().shutdown(sockets)
        if self._monitor:
            self._monitor.stop()
        if self._settings.uds and self._inode is not None and inode(self._settings.uds) == self._inode:
            self._settings.uds.unlink(missing_ok=True)

    async def _wait_tasks_to_complete(self) -> None:
        """Wait for open requests for at most half of the shutdown timeout, then cancel them.

        uvicorn would log this as an error. Here it is the planned end of clients that are too slow.
        """
        seconds = self._request_seconds
        try:
            # A stalled client must not delay the final write to disk.
            await asyncio.wait_for(super()._wait_tasks_to_complete(), seconds)
        except TimeoutError:
            tasks = list(self.server_state.tasks)
            log.warning("requests cancelled at shutdown, not finished within %g s: %d", seconds, len(tasks))
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.abort_response()
            for task in tasks:
                task.cancel()
            if tasks:
                # They tell their clients that the service shuts down.
                await asyncio.wait(tasks, timeout=CANCEL_SECONDS)

    def _open_requests(self) -> int:
        """Return the number of requests whose responses are not complete."""
        connections = [each for each in self.server_state.connections if isinstance(each, HttpProtocol)]
        return sum(each.open_requests() for each in connections) if self._monitor else len(self.server_state.tasks)

    @property
    def _request_seconds(self) -> float:
        """Maximum time to wait for open requests at the shutdown."""
        return self._settings.shutdown_timeout / 2

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down. At the second Ctrl-C, exit at once."""
        # Set the flag first: another signal may interrupt this function anywhere.
        is_first, self._is_stopping = not (self._is_stopping or self.should_exit), True
        if is_first:
            seconds = self._settings.shutdown_timeout
            self.config.app.state.ends_at = time.monotonic() + 0.9 * seconds  # type: ignore[union-attr]  # a FastAPI app
            # A thread, because the event loop may hang, for example in a driver. Exiting is safe at any moment: the
            # disk store is always consistent, and data that is only in memory has no durability guarantee.
            threading.Thread(target=_exit_after, args=(seconds,), daemon=True).start()
            if requests := self._open_requests():
                self._on_waiting(requests, self._request_seconds, sig == signal.SIGINT)
        elif sig == signal.SIGINT:
            log.warning("second interrupt: exiting at once; sessions that are not on disk are lost")
            os._exit(EXIT_INTERRUPTED)
        super().handle_exit(sig, frame)

    def _protocol_factory(self, loop: asyncio.AbstractEventLoop) -> ProtocolFactory:
        """Return a function that makes the protocol object of a connection."""
        max_connections = raise_open_file_limit(self._settings.max_connections)
        options = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        if self._settings.http_protocol == "uvicorn":
            log.warning(
                "http protocol uvicorn: no limits on header size, slow clients, pipelined requests and connections; "
                "no detection of disconnected clients; bodies are copied"
            )
            return partial(self.config.http_protocol_class, **options)
        self._monitor = ConnectionMonitor(self.server_state.connections, self._limits(max_connections), loop)  # type: ignore[arg-type]  # all are HttpProtocol
        return partial(HttpProtocol, monitor=self._monitor, **options)

    def _limits(self, max_connections: int) -> Limits:
        settings = self._settings
        return Limits(
            max_header_nbytes=int(settings.max_header_size),
            max_connections=max_connections,
            idle_seconds=self.config.timeout_keep_alive,
            header_timeout=settings.header_timeout,
            stall_timeout=settings.stall_timeout,
            min_bytes_per_second=int(settings.min_transfer_rate),
        )

    async def _listen(self, loop: asyncio.AbstractEventLoop, factory: ProtocolFactory) -> asyncio.Server:
        tls = self.config.ssl
        options: dict[str, Any] = {
            "ssl": tls,
            "backlog": self.config.backlog,
            "ssl_handshake_timeout": self._settings.header_timeout if tls else None,
            "ssl_shutdown_timeout": TLS_SHUTDOWN_SECONDS if tls else None,
        }
        if self._settings.uds:
            bound = bind_unix(self._settings.uds, int(self._settings.uds_mode, 8))
            self._inode = inode(self._settings.uds)
            return await loop.create_unix_server(factory, sock=bound, **options)
        host, port = self._settings.host, self._settings.port
        try:
            return await loop.create_server(factory, host=host, port=port, **options)
        except OSError as error:
            raise listen_error(host, port, error) from error

    def _address(self) -> str:
        """Return the URL of the server, or `unix:` and the path of its socket."""
        if self._settings.uds:
            return f"unix:{self._settings.uds}"
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    log.error("shutdown not finished after %g seconds: exiting now", seconds)
    os._exit(1)
