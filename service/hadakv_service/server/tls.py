"""The TLS context of the server, and explanations of certificate errors."""

import errno
import os
import ssl
import stat
from pathlib import Path

from hadakv_service.settings import Settings


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
