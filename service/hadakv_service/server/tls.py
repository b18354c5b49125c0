"""Build the TLS context, and explain certificate errors."""

import errno
import os
import ssl
import stat
from pathlib import Path

from hadakv_service.settings import Settings


def tls_context(settings: Settings) -> ssl.SSLContext:
    """Build the TLS context from the settings.

    Raises:
        OSError: the certificate, its key or the password file cannot be used. The message says what to do.
    """
    assert settings.tls_cert is not None
    cert, key = settings.tls_cert, settings.tls_key or settings.tls_cert
    password = _read_text(settings.tls_key_password_file).strip("\r\n") if settings.tls_key_password_file else None
    is_encrypted = False

    def get_password() -> str:
        nonlocal is_encrypted
        is_encrypted = True
        return password or ""

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without this function OpenSSL would ask for the password at the terminal.
        context.load_cert_chain(cert, key, password=get_password)
    except OSError as error:
        # OpenSSL's error does not name the file that it cannot read.
        _check_readable(cert, key)
        # OpenSSL gives the same reason for all errors but a mismatch of key and certificate.
        if is_encrypted and password is None:
            reason = f"the key in {key} is encrypted; pass its password with --tls-key-password-file"
        elif is_encrypted:
            reason = f"the password in {settings.tls_key_password_file} does not decrypt the key in {key}"
        elif isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            reason = f"the key in {key} does not belong to the certificate"
        else:
            reason = f"{cert} must begin with a certificate and {key} must contain its key, both in PEM ({error})"
        raise OSError(f"cannot use the certificate {cert}: {reason}") from error
    return context


def _check_readable(*paths: Path) -> None:
    for path in paths:
        if reason := _unreadable(path):
            raise OSError(f"cannot read {path}: {reason}")


def _unreadable(path: Path) -> str | None:
    """Return why a file cannot be read, or None. Do not open it: it may be a pipe, which can be read only once."""
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return error.strerror
    if is_directory:
        return os.strerror(errno.EISDIR)
    return None if os.access(path, os.R_OK) else os.strerror(errno.EACCES)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise OSError(f"cannot read {path}: {reason}") from error
