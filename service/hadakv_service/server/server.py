"""Listens: on an address or a Unix domain socket, with TLS or without, for as many connections as there may be."""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from functools import partial

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from hadakv_service.server.connection_monitor import ConnectionMonitor, Limits
from hadakv_service.server.protocol import HttpProtocol
from hadakv_service.server.sockets import bind_unix, inode, raise_open_file_limit
from hadakv_service.settings import Settings

log = logging.getLogger(__name__)

# How long a peer may take to take its leave, once all is said.
TLS_SHUTDOWN_SECONDS = 5

Factory = Callable[[], asyncio.Protocol]


class Server(uvicorn.Server):
    """uvicorn's server, with sockets and connections of its own making.

    Args:
        config: of uvicorn.
        settings: what to listen on, and what peers may do.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings
        self._watch: ConnectionMonitor | None = None
        self._inode: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Start the app, then listen; exit with a line that says why not, if that cannot be done."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        loop = asyncio.get_running_loop()
        connections = raise_open_file_limit(self._settings.max_connections)
        self._watch = ConnectionMonitor(self.server_state.connections, self._limits(connections), loop)  # type: ignore[arg-type]  # all are patient
        factory = partial(
            HttpProtocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            watch=self._watch,
        )
        try:
            self.servers = [await self._listen(loop, factory)]
        except OSError as error:
            await self.lifespan.shutdown()
            sys.exit(f"hadakv: {error}")
        self._watch.start()
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let requests under way end, then the app."""
        await super().shutdown(sockets)
        if self._watch:
            self._watch.stop()
        if self._settings.uds and self._inode is not None and inode(self._settings.uds) == self._inode:
            self._settings.uds.unlink(missing_ok=True)

    def _limits(self, connections: int) -> Limits:
        settings = self._settings
        return Limits(
            max_header_nbytes=int(settings.max_head),
            max_connections=connections,
            idle_seconds=self.config.timeout_keep_alive,
            header_timeout=settings.header_seconds,
            stall_timeout=settings.body_seconds,
            min_bytes_per_second=int(settings.min_rate),
        )

    async def _listen(self, loop: asyncio.AbstractEventLoop, factory: Factory) -> asyncio.Server:
        tls = self.config.ssl
        patience = (self._settings.header_seconds, TLS_SHUTDOWN_SECONDS) if tls else (None, None)
        listen = partial(loop.create_server, host=self._settings.host, port=self._settings.port)
        if self._settings.uds:
            bound = bind_unix(self._settings.uds, int(self._settings.uds_mode, 8))
            self._inode = inode(self._settings.uds)
            listen = partial(loop.create_unix_server, sock=bound)
        return await listen(
            factory,
            ssl=tls,
            backlog=self.config.backlog,
            ssl_handshake_timeout=patience[0],
            ssl_shutdown_timeout=patience[1],
        )
