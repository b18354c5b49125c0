"""TLS contexts of the clients."""

import os
import ssl
from pathlib import Path

import httpx

from hadakv_client.http.connections import forks
from hadakv_client.http.files import PathLike


class Tls:
    """TLS context, created when it is first needed.

    Args:
        ca_file: certificates in PEM to trust instead of the default certificate authorities; None uses the default.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no certificate, or an invalid one.
    """

    def __init__(self, ca_file: PathLike | None) -> None:
        self._ca_file = ca_file
        self._context = None if ca_file is None else _create_context(ca_file)
        self._is_inherited = False
        forks.register(self)

    def context(self) -> ssl.SSLContext:
        """Return the context."""
        if self._context is None or self._is_inherited:
            try:
                self._context = _create_context(self._ca_file)
            except (OSError, ValueError):
                # The child may not be allowed to read the file, but its parent was.
                if self._context is None:
                    raise
            self._is_inherited = False
        return self._context

    def reset_after_fork(self) -> None:
        """Replace the context at the next use. Another thread may have held one of its locks during the fork."""
        self._is_inherited = True


def _create_context(ca_file: PathLike | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False) if ca_file is None else _private_authorities(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _private_authorities(ca_file: PathLike) -> ssl.SSLContext:
    # Open the file first. An error of OpenSSL does not name the file.
    Path(ca_file).open("rb").close()
    try:
        return ssl.create_default_context(cafile=os.fspath(ca_file))
    except ssl.SSLError as error:
        is_empty = error.reason == "NO_CERTIFICATE_OR_CRL_FOUND"
        reason = "contains no PEM certificate" if is_empty else f"contains an invalid certificate: {error}"
        raise ValueError(f"{os.fspath(ca_file)} {reason}") from error
