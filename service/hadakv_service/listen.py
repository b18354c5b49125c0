"""Listens: on an address or a Unix domain socket, with TLS or without, for as many connections as there may be."""

import asyncio
import errno
import logging
import os
import resource
import socket
import ssl
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from hadakv_service.patience import PatientProtocol
from hadakv_service.settings import Settings
from hadakv_service.watch import Limits, Watch

log = logging.getLogger(__name__)

# File descriptors for all but connections, and those for connections that are in the middle of being made.
SPARE_FILES = 512
# How long a peer may take to take its leave, once all is said.
TLS_SHUTDOWN_SECONDS = 5

Factory = Callable[[], asyncio.Protocol]


class Listener(uvicorn.Server):
    """uvicorn's server, with sockets and connections of its own making.

    Args:
        config: of uvicorn.
        settings: what to listen on, and what peers may do.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings
        self._watch: Watch | None = None
        self._inode: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Start the app, then listen; exit with a line that says why not, if that cannot be done."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        loop = asyncio.get_running_loop()
        connections = room_for(self._settings.max_connections)
        self._watch = Watch(self.server_state.connections, self._limits(connections), loop)  # type: ignore[arg-type]  # all are patient
        factory = partial(
            PatientProtocol,
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
        if self._settings.uds and self._inode is not None and _inode(self._settings.uds) == self._inode:
            self._settings.uds.unlink(missing_ok=True)

    def _limits(self, connections: int) -> Limits:
        settings = self._settings
        return Limits(
            head_nbytes=int(settings.max_head),
            connections=connections,
            idle_seconds=self.config.timeout_keep_alive,
            head_seconds=settings.header_seconds,
            body_seconds=settings.body_seconds,
            rate=int(settings.min_rate),
        )

    async def _listen(self, loop: asyncio.AbstractEventLoop, factory: Factory) -> asyncio.Server:
        tls = self.config.ssl
        patience = (self._settings.header_seconds, TLS_SHUTDOWN_SECONDS) if tls else (None, None)
        listen = partial(loop.create_server, host=self._settings.host, port=self._settings.port)
        if self._settings.uds:
            bound = bind_unix(self._settings.uds, int(self._settings.uds_mode, 8))
            self._inode = _inode(self._settings.uds)
            listen = partial(loop.create_unix_server, sock=bound)
        return await listen(
            factory,
            ssl=tls,
            backlog=self.config.backlog,
            ssl_handshake_timeout=patience[0],
            ssl_shutdown_timeout=patience[1],
        )


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A socket bound to a path, in place of one that a process left there when it ended.

    Args:
        path: of the socket.
        mode: its permissions; who may write may connect.

    Raises:
        OSError: a process listens there, or something else is in the way.
    """
    _remove_left_over(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
        # Nobody can connect before it listens.
        path.chmod(mode)
    except OSError as error:
        bound.close()
        raise OSError(f"cannot bind {path}: {error.strerror or error}") from error
    return bound


def _remove_left_over(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path} is in the way, and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        # One whose queue is full does not answer, but lives.
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise OSError(f"{path} is in the way: {error.strerror or error}") from error
    raise OSError(f"a process listens on {path} already")


def room_for(connections: int) -> int:
    """Raise the number of files that may be open, which on a Mac is 256, to what so many connections need.

    Returns:
        How many connections there can be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    except (ValueError, OSError):
        possible = soft
    if possible == wanted:
        return connections
    fewer = max(possible - SPARE_FILES, possible // 2)
    log.warning("only %d files may be open, so that there can be %d connections, not %d", possible, fewer, connections)
    return min(fewer, connections)


def tls_context(settings: Settings) -> ssl.SSLContext:
    """TLS as the settings have it.

    Raises:
        OSError: the certificate, its key or the password's file cannot be used.
    """
    assert settings.tls_cert is not None
    cert, key = settings.tls_cert, settings.tls_key or settings.tls_cert
    password = _text(settings.tls_key_password_file).strip("\r\n") if settings.tls_key_password_file else None
    asked = False

    def ask() -> str:
        nonlocal asked
        asked = True
        return password or ""

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a function for it OpenSSL would ask for the password at the terminal.
        context.load_cert_chain(cert, key, password=ask)
    except OSError as error:
        # What OpenSSL says of a file that it cannot read does not name it.
        for path in (cert, key):
            if unreadable := _unreadable(path):
                raise OSError(f"cannot read {path}: {unreadable}") from error
        # For all but a key of another certificate OpenSSL has the same two words.
        if asked and password is None:
            reason = f"the key in {key} has a password: give --tls-key-password-file, a file that has it"
        elif asked:
            reason = f"the password in {settings.tls_key_password_file} does not open the key in {key}"
        elif isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            reason = f"the key in {key} is not the certificate's"
        else:
            reason = f"see to it that {cert} begins with a certificate and {key} has its key, both in PEM ({error})"
        raise OSError(f"cannot use the certificate {cert}: {reason}") from error
    return context


def _unreadable(path: Path) -> str | None:
    """Why a file cannot be read, if so. It is not opened: it may be a pipe, which can be read but once."""
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return error.strerror
    if folder:
        return os.strerror(errno.EISDIR)
    return None if os.access(path, os.R_OK) else os.strerror(errno.EACCES)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise OSError(f"cannot read {path}: {reason}") from error
