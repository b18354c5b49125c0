"""Explanations of failed connections: what is wrong, and what to do."""

import ssl
from collections.abc import Iterator

import httpcore
import httpx

_UNTRUSTED = (18, 19, 20, 21)  # codes of OpenSSL: self-signed, or issued by an unknown authority
_NO_HTTP = ("disconnected without sending a response", "illegal status line")  # messages of httpcore and h11
_START = "Start one with `hadakv serve`, or set --url or HADAKV_URL (in Python: base_url) to the URL of a running one."


def explain(error: Exception, call: str, address: str) -> str:
    """Return the message for a call without a response, with advice if the cause is known.

    Args:
        error: error of httpx or httpcore.
        call: method and path.
        address: URL of the service.
    """
    reason = str(error) or type(error).__name__
    if isinstance(error, httpcore.ConnectError | httpx.ConnectError):
        for cause in _causes(error):
            if isinstance(cause, ConnectionRefusedError | FileNotFoundError):
                what = "connection refused" if isinstance(cause, ConnectionRefusedError) else "no such socket"
                return f"No hadakv service answers at {address} ({what}). {_START}"
            if isinstance(cause, ssl.SSLError):
                return f"{call} at {address}: {reason}. {_tls_advice(cause)}"
    if address.startswith("http://") and any(each in reason for each in _NO_HTTP):
        reason = f"{reason.removesuffix('.')}. If the service uses TLS, its URL begins with https://"
    return f"{call} at {address}: {reason}"


def _tls_advice(error: ssl.SSLError) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return "The service does not use TLS, or another version of it. Without TLS its URL begins with http://"
    if error.verify_code in _UNTRUSTED:
        return "Trust the certificate with ca_file (--ca-file, HADAKV_CA_FILE), the file of its certificate authority."
    return "The certificate does not fit this address, or is not valid now."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it. httpcore removes the cause, but keeps it as an argument."""
    while error is not None:
        yield error
        nested = next((each for each in error.args if isinstance(each, BaseException)), None)
        error = error.__cause__ or nested or error.__context__
