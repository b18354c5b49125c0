"""Every error that a client can receive, with its HTTP status and its slug in the problem document.

ServiceError
├── MalformedBody          400  not msgpack, truncated, trailing bytes, nested too deep
├── MalformedRequest       400  not HTTP
├── Unauthorized           401  the token is missing or unknown
├── ForbiddenOrigin        403  sent by a web page of another site
├── SessionNotFound        404  also for a session of another tenant
├── SessionCorrupt         410  checksum mismatch or missing pages on disk
├── Conflict               409
│   ├── ShapeMismatch           tensors do not match the session
│   ├── CodecMismatch           the requested codec is not the session's
│   ├── SessionExists           the id is taken, or PUT asks for another shape
│   └── PositionConflict        the append is not at the end
├── RequestTimeout         408  the headers or the body did not arrive in time
├── BodyTooLarge           413
├── UnsupportedMediaType   415
├── UnknownHost            421  the Host header names another service
├── InvalidRequest         422  a field is missing, unknown or wrong
│   ├── ResponseTooLarge        the response would exceed the limit
│   └── NonFinite               NaN, infinity or overflow in k or v
├── FileCorrupt            422  checksum mismatch of an imported file
├── HeadersTooLarge        431
├── UnsupportedTransferEncoding  501  the body has a transfer coding besides chunked
├── Busy                   503  the device queue or the number of requests is at its limit
├── SelfTestFailed         503  the device computes wrong results
├── StorageUnavailable     503  the disk store cannot be used now
├── ShuttingDown           503  shutdown before the response; the request may have been processed
├── InsufficientStorage    507  exceeds the memory or disk budget, or the disk is full
└── QuotaExceeded          507  exceeds the tenant's quota
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal


class ServiceError(Exception):
    """Base class of every error that a client can receive.

    Attributes:
        status: HTTP status.
        slug: last part of the problem's `type`.
        title: kind of problem, the same for all occurrences.
        detail: description of this occurrence.
        fields: additional members of the problem document.
        headers: additional response headers.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields
        self.headers = dict(headers or {})


class MalformedBody(ServiceError):
    """The body cannot be parsed."""

    status, slug, title = 400, "malformed-body", "The body is malformed"


class MalformedRequest(ServiceError):
    """The request is not valid HTTP, or its headers contradict each other."""

    status, slug, title = 400, "malformed-request", "The request is malformed"


class Unauthorized(ServiceError):
    """The token is missing or unknown."""

    status, slug, title = 401, "unauthorized", "A valid token is required"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenOrigin(ServiceError):
    """A browser sent the request for a web page of another site."""

    status, slug, title = 403, "forbidden-origin", "Requests from other sites are forbidden"


class SessionNotFound(ServiceError):
    """The tenant has no session with this id."""

    status, slug, title = 404, "session-not-found", "The session does not exist"

    def __init__(self, session: str) -> None:
        super().__init__(f"There is no session {session!r}.", session=session)


class SessionCorrupt(ServiceError):
    """The stored session is corrupt. It can only be deleted."""

    status, slug, title = 410, "session-corrupt", "The session is corrupt"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{detail} Delete the session and send it again.")


class Conflict(ServiceError):
    """The request conflicts with stored data."""

    status = 409


class ShapeMismatch(Conflict):
    """The shape of the tensors does not match the session."""

    slug, title = "shape-mismatch", "The shape does not match the session"


class CodecMismatch(Conflict):
    """The requested codec is not the codec of the session."""

    slug, title = "codec-mismatch", "The codec does not match the session"


class SessionExists(Conflict):
    """PUT of an existing session with another shape, or fork or import to an id that is taken."""

    slug, title = "session-exists", "The session already exists"


class PositionConflict(Conflict):
    """The append is not at the end of its layers; `length` is the position of the end."""

    slug, title = "position-conflict", "The position is not at the end"

    def __init__(self, detail: str, length: int) -> None:
        super().__init__(detail, length=length)


class RequestTimeout(ServiceError):
    """The headers or the body of the request did not arrive in time."""

    status, slug, title = 408, "request-timeout", "The request came too slowly"


class BodyTooLarge(ServiceError):
    """The body exceeds the limit; `limit` is the maximum in bytes."""

    status, slug, title = 413, "body-too-large", "The body is too large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body exceeds the limit of {limit} bytes (--max-body). Send less at a time.", limit=limit)


class UnsupportedMediaType(ServiceError):
    """The operation does not accept this content type."""

    status, slug, title = 415, "unsupported-media-type", "The content type is not supported"


class UnknownHost(ServiceError):
    """The Host header names another service, as after DNS rebinding; `host` is its value."""

    status, slug, title = 421, "unknown-host", "The Host name is unknown"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"The Host {host!r} is not allowed. Use the service's address, or add the name to --allowed-hosts.",
            host=host,
        )


class InvalidRequest(ServiceError):
    """Fields are missing, unknown or wrong; `errors` lists each field with the reason."""

    status, slug, title = 422, "invalid-request", "The request is invalid"

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        listed = [{"field": field, "reason": reason} for field, reason in errors]
        super().__init__("; ".join(f"{field}: {reason}" for field, reason in errors), errors=listed)


class FileCorrupt(ServiceError):
    """The bytes of a session file do not match the digest at its end."""

    status, slug, title = 422, "file-corrupt", "The file is corrupt"


class ResponseTooLarge(InvalidRequest):
    """The response would exceed the limit; `limit` is the maximum in bytes. A read also says what fits.

    Args:
        field: request field that could make the response smaller.
        nbytes: bytes of the response.
        limit: maximum bytes.
        advice: what to request instead.
        members: further members of the problem.
    """

    slug, title = "response-too-large", "The response would be too large"

    def __init__(self, field: str, nbytes: int, limit: int, advice: str = "request less", **members: object) -> None:
        super().__init__([(field, f"needs a response of {nbytes} bytes, the limit is {limit}; {advice}")])
        self.fields |= {"limit": limit, **members}


class NonFinite(InvalidRequest):
    """NaN, infinity or overflow; `stream`, `layer`, `head` and `token` (or `row`) locate the first one.

    Args:
        stream: `"k"`, `"v"` or `"x"`.
        place: index of the value on each axis of the stream.
        consequence: effect on the request, appended to the reason.
    """

    slug, title = "non-finite", "A value is not finite"

    def __init__(self, stream: str, *, consequence: str = "", **place: int) -> None:
        where = ", ".join(f"{axis} {index}" for axis, index in place.items())
        super().__init__([(stream, f"has NaN, infinity or overflow at {where}" + consequence)])
        self.fields |= {"stream": stream, **place}


class HeadersTooLarge(ServiceError):
    """The request line and headers exceed the limit; `limit` is the maximum in bytes."""

    status, slug, title = 431, "headers-too-large", "The request's head is too large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request line and headers exceed the limit of {limit} bytes.", limit=limit)


class Busy(ServiceError):
    """Too many jobs are queued for the device, or too many requests are in progress."""

    status, slug, title = 503, "busy", "The service is busy"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class UnsupportedTransferEncoding(ServiceError):
    """The body has a transfer coding besides chunked."""

    status, slug, title = 501, "unsupported-transfer-encoding", "The transfer encoding is not supported"


class SelfTestFailed(ServiceError):
    """The device encodes a known vector to wrong bytes."""

    status, slug, title = 503, "self-test-failed", "The device computes wrong results"


class StorageUnavailable(ServiceError):
    """The disk store cannot be read or written now; nothing was changed."""

    status, slug, title = 503, "storage-unavailable", "The disk store is unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "5"})


class ShuttingDown(ServiceError):
    """The service shut down before the response was ready; the request may have been processed.

    There is no Retry-After header: a repeated request may be processed twice.
    """

    status, slug, title = 503, "shutting-down", "The service is shutting down"

    def __init__(self) -> None:
        super().__init__("The service shut down before the response was ready. The request may have been processed.")


class InsufficientStorage(ServiceError):
    """The session does not fit, even with all other sessions evicted, or the disk is full."""

    status, slug, title = 507, "insufficient-storage", "Storage is full"


class QuotaExceeded(ServiceError):
    """The request exceeds the tenant's quota.

    Args:
        resource: exceeded resource.
        needed: additional amount that the request needs.
        quota: the tenant's quota of the resource.
    """

    status, slug, title = 507, "quota-exceeded", "The quota is exceeded"

    def __init__(self, resource: Literal["bytes", "sessions"], needed: int, quota: int) -> None:
        super().__init__(
            f"Quota exceeded: {needed} more {resource} needed, quota is {quota}. Delete sessions.",
            resource=resource,
            needed=needed,
            quota=quota,
        )
