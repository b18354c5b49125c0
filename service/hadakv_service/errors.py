"""What the service refuses, each with the status and the slug it has on the wire.

ServiceError
├── MalformedBody          400  not msgpack, cut short, trailing bytes, nested too deep
├── MalformedRequest       400  not HTTP
├── Unauthorized           401  missing or wrong token
├── ForbiddenOrigin        403  a web page of another site asks
├── SessionNotFound        404  also for a session of another tenant
├── SessionDamaged         410  what is stored of it is not what was written
├── Conflict               409
│   ├── ShapeMismatch           tensors disagree with the session
│   ├── CodecMismatch           the codec asked for is not the session's
│   ├── SessionExists           PUT of a session of another shape, or an id that is taken
│   └── PositionConflict        the append is not at the end
├── TooSlow                408  a head or a body took too long to come
├── BodyTooLarge           413
├── UnsupportedMediaType   415
├── UnknownHost            421  the request is for a name that is not the service's
├── InvalidRequest         422  a field is missing, unknown or wrong
│   ├── AnswerTooLarge          what is asked for would not fit one answer
│   └── NonFinite               NaN, infinity or overflow in k or v
├── HeadTooLarge           431
├── Busy                   503  too many requests wait, or are under way
├── TierUnavailable        503  the tier below memory cannot be used now
├── Ending                 503  the process ends, and whether the request was carried out is not known
├── InsufficientStorage    507  does not fit the budgets, or the disk
└── QuotaExceeded          507  does not fit what the tenant may have
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal


class ServiceError(Exception):
    """Base of every error a client is told about.

    Attributes:
        status: the HTTP status.
        slug: the last part of the problem's `type`.
        title: the kind of problem, the same for all of its occurrences.
        detail: this occurrence, in words.
        fields: further members of the problem document.
        headers: further response headers.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "The service failed"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields
        self.headers = dict(headers or {})


class MalformedBody(ServiceError):
    """The body cannot be parsed at all."""

    status, slug, title = 400, "malformed-body", "The body is malformed"


class MalformedRequest(ServiceError):
    """What came is not HTTP, or says things that contradict each other."""

    status, slug, title = 400, "malformed-request", "The request is malformed"


class Unauthorized(ServiceError):
    """The token is missing or wrong."""

    status, slug, title = 401, "unauthorized", "A valid token is needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenOrigin(ServiceError):
    """A browser sends this for a web page of another site."""

    status, slug, title = 403, "forbidden-origin", "Pages of other sites may not call the service"


class SessionNotFound(ServiceError):
    """This caller has no session of that id."""

    status, slug, title = 404, "session-not-found", "There is no such session"

    def __init__(self, session: str) -> None:
        super().__init__(f"There is no session {session!r}.", session=session)


class SessionCorrupt(ServiceError):
    """What is stored of the session is not what was written; only deleting it helps."""

    status, slug, title = 410, "session-damaged", "The session is damaged"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{detail} Delete the session and send it again.")


class Conflict(ServiceError):
    """The request contradicts what is stored."""

    status = 409


class ShapeMismatch(Conflict):
    """Tensors disagree with the session's shape."""

    slug, title = "shape-mismatch", "The shape disagrees with the session"


class CodecMismatch(Conflict):
    """The codec asked for is not the session's."""

    slug, title = "codec-mismatch", "The codec disagrees with the session"


class SessionExists(Conflict):
    """PUT of a session that exists with another shape, or a fork or an import to an id that is taken."""

    slug, title = "session-exists", "The session exists already"


class PositionConflict(Conflict):
    """The append is not at the end of its layers; `length` tells where that is."""

    slug, title = "position-conflict", "The position is not at the end"

    def __init__(self, detail: str, length: int) -> None:
        super().__init__(detail, length=length)


class RequestTimeout(ServiceError):
    """A head or a body took too long to come."""

    status, slug, title = 408, "request-timeout", "The request came too slowly"


class BodyTooLarge(ServiceError):
    """The body is over the limit."""

    status, slug, title = 413, "body-too-large", "The body is too large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A body may have at most {limit} bytes.", limit=limit)


class UnsupportedMediaType(ServiceError):
    """The content type is none this call reads."""

    status, slug, title = 415, "unsupported-media-type", "The content type is not supported"


class UnknownHost(ServiceError):
    """The request is for a name that is not the service's, as after DNS rebinding; `host` is that name."""

    status, slug, title = 421, "unknown-host", "The service does not have that name"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"The request is for {host!r}. Use the service's address, or start it with --allowed-hosts.", host=host
        )


class InvalidRequest(ServiceError):
    """Fields are missing, unknown or wrong; `errors` lists field and reason."""

    status, slug, title = 422, "invalid-request", "The request is invalid"

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        listed = [{"field": field, "reason": reason} for field, reason in errors]
        super().__init__("; ".join(f"{field}: {reason}" for field, reason in errors), errors=listed)


class ResponseTooLarge(InvalidRequest):
    """What is asked for would not fit one answer; `limit` is the most it may have."""

    slug, title = "answer-too-large", "The answer would be too large"

    def __init__(self, field: str, nbytes: int, limit: int) -> None:
        super().__init__([(field, f"asks for {nbytes} bytes, an answer may have at most {limit}; ask for less")])
        self.fields |= {"limit": limit}


class NonFinite(InvalidRequest):
    """NaN, infinity or overflow; stream, layer, head and token (or row) name the first one.

    Args:
        stream: `"k"`, `"v"` or `"x"`.
        place: where in it.
        consequence: what became of the request, if that is not plain.
    """

    slug, title = "non-finite", "A value is not finite"

    def __init__(self, stream: str, *, consequence: str = "", **place: int) -> None:
        where = ", ".join(f"{axis} {index}" for axis, index in place.items())
        super().__init__([(stream, f"has NaN, infinity or overflow at {where}" + consequence)])
        self.fields |= {"stream": stream, **place}


class HeadersTooLarge(ServiceError):
    """A request's line and headers are over the limit."""

    status, slug, title = 431, "headers-too-large", "The request's head is too large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"A request's line and headers may have at most {limit} bytes.", limit=limit)


class Busy(ServiceError):
    """Too many requests wait for the device, or are under way."""

    status, slug, title = 503, "busy", "The service is busy"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class StorageUnavailable(ServiceError):
    """The tier below memory cannot be read or written now; nothing was changed."""

    status, slug, title = 503, "tier-unavailable", "The tier below memory is not available"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "5"})


class ShuttingDown(ServiceError):
    """The process ends before the answer is there; whether the request was carried out is not known.

    It has no Retry-After, as to send again what was carried out may be to do it twice.
    """

    status, slug, title = 503, "ending", "The service is ending"

    def __init__(self) -> None:
        super().__init__("The service ended before this was answered; it may have been carried out.")


class InsufficientStorage(ServiceError):
    """The session does not fit, even with everything else evicted, or the disk is full."""

    status, slug, title = 507, "insufficient-storage", "There is no room"


class QuotaExceeded(ServiceError):
    """What is asked for does not fit what the tenant may have.

    Args:
        resource: what there is too little of.
        needed: how much more of it the request takes.
        quota: how much of it the tenant may have.
    """

    status, slug, title = 507, "quota-exceeded", "The tenant's quota does not allow it"

    def __init__(self, resource: Literal["bytes", "sessions"], needed: int, quota: int) -> None:
        super().__init__(
            f"It takes {needed} {resource} more; all your sessions together may have {quota}. Delete some.",
            resource=resource,
            needed=needed,
            quota=quota,
        )
