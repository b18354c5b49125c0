"""Exceptions of the client.

HadakvError
├── TransportError               no response was received
│   ├── ConnectionLost           the connection failed or broke
│   └── Timeout                  the client stopped waiting
├── ProtocolError                the response is not valid
├── SessionChanged               the session changed while it was read in parts
└── Problem                      the service rejected the request (RFC 9457)
    ├── MalformedBody            400  the body cannot be parsed
    ├── MalformedRequest         400  the service received invalid HTTP
    ├── Unauthorized             401  missing or wrong token
    ├── ForbiddenOrigin          403  cross-site request from a web page
    ├── NotFound                 404  no such route
    │   └── SessionNotFound           no such session, or another tenant owns it
    ├── RequestTimeout           408  the request arrived too slowly
    ├── Conflict                 409
    │   ├── ShapeMismatch             the tensors do not fit the session's shape
    │   ├── CodecMismatch             the codec is not the session's codec
    │   ├── SessionExists             the id is taken
    │   └── PositionConflict          the append is not at the end: `length`
    ├── SessionCorrupt           410  checksum mismatch in the stored session
    ├── BodyTooLarge             413  the body exceeds `limit` bytes
    ├── UnsupportedMediaType     415
    ├── UnknownHost              421  the service does not accept this host name: `host`
    ├── InvalidRequest           422  invalid fields: `errors`
    │   ├── ResponseTooLarge          the response would exceed `limit` bytes
    │   └── NonFinite                 NaN, infinity or overflow: `stream`, `layer`, `head`, `token`, `row`
    ├── FileCorrupt              422  the bytes of a session file do not match its digest
    ├── HeadersTooLarge          431  the headers exceed `limit` bytes
    ├── InternalError            500  and every other 5xx without a class of its own
    ├── Busy                     503  retry after `retry_after` seconds
    │   └── StorageUnavailable        the disk store cannot be used now
    ├── ShuttingDown             503  the service stopped before it responded; the request may have been carried out
    └── InsufficientStorage      507  the service has no space for the session
        └── QuotaExceeded             the tenant's quota is used up: `resource`, `needed`, `quota`

An argument that can never be sent raises `TypeError` or `ValueError` before anything is sent.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class HadakvError(Exception):
    """Base class of all exceptions of `hadakv_client`.

    An append that is too large for one request is sent in parts. If a part fails, the parts before it stay stored.

    Attributes:
        stored_tokens: number of tokens of the failed append that are stored in all of its layers.
        next_position: position of the first token that is not; None if no append in parts failed.
    """

    stored_tokens: int = 0
    next_position: int | None = None


class TransportError(HadakvError):
    """No response was received.

    Attributes:
        sent: whether the service may have received the request and carried it out.
    """

    def __init__(self, message: str, sent: bool = True) -> None:
        # Exception must get every argument. Otherwise the error cannot be pickled.
        super().__init__(message, sent)
        self.sent = sent

    def __str__(self) -> str:
        return str(self.args[0])


class ConnectionLost(TransportError):
    """The connection could not be opened, or it broke before the response was complete."""


class Timeout(TransportError):
    """The service did not respond within the client's timeout."""


class ProtocolError(HadakvError):
    """The response is not valid. Another server sent it, or another version of the service."""


class SessionChanged(HadakvError):
    """Tokens of the session were deleted or replaced while it was read in parts. Read it again."""


class Problem(HadakvError):
    """The service rejected the request and gave a reason (RFC 9457).

    Attributes:
        status: HTTP status.
        slug: kind of problem, for example `"position-conflict"`; empty if the response names none.
        title: summary of the kind of problem.
        detail: description of this occurrence.
        fields: further members of the problem document.
        retry_after: seconds to wait before the next attempt; None if the service gives no time.
    """

    status: int = 0
    slug: str = ""
    # Members of the document that become attributes, and their types. If one is missing, a parent class is used.
    members: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        status: int,
        slug: str = "",
        title: str = "",
        detail: str = "",
        fields: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, slug, title, detail, fields, retry_after)
        self.status = status
        self.slug = slug
        self.title = title
        self.detail = detail
        self.fields = dict(fields or {})
        self.retry_after = retry_after
        for name in self.members:
            setattr(self, name, self.fields.get(name))

    @property
    def request_id(self) -> str:
        """Return the id of the request in the service's log; empty if the response has none."""
        return str(self.fields.get("request_id") or "")

    def __str__(self) -> str:
        kind = f"{self.status} {self.slug}".rstrip()
        return f"{self.detail or self.title or 'The service rejected the request.'} ({kind})"


class MalformedBody(Problem):
    """The service cannot parse the body."""

    status, slug = 400, "malformed-body"


class MalformedRequest(Problem):
    """The service received invalid HTTP. Something between the client and the service changed the request."""

    status, slug = 400, "malformed-request"


class Unauthorized(Problem):
    """The token is missing or wrong."""

    status, slug = 401, "unauthorized"


class ForbiddenOrigin(Problem):
    """The request looks like a cross-site request from a web page."""

    status, slug = 403, "forbidden-origin"


class NotFound(Problem):
    """The route does not exist. The base URL belongs to another server, or this version lacks the call."""

    status, slug = 404, "not-found"


class SessionNotFound(NotFound):
    """The caller has no session with this id. It was never created, or it was deleted, expired or evicted."""

    slug = "session-not-found"


class SessionCorrupt(Problem):
    """The stored session is corrupt. Delete it and send the tokens again."""

    status, slug = 410, "session-corrupt"


class Conflict(Problem):
    """The request contradicts the stored session."""

    status = 409


class ShapeMismatch(Conflict):
    """The tensors do not fit the session's shape."""

    slug = "shape-mismatch"


class CodecMismatch(Conflict):
    """The codec in the request is not the session's codec."""

    slug = "codec-mismatch"


class SessionExists(Conflict):
    """The session to create exists with another shape, or the id for a fork or an import is taken."""

    slug = "session-exists"


class PositionConflict(Conflict):
    """The append is not at the end of its layers.

    Attributes:
        length: number of tokens in these layers.
    """

    slug, members = "position-conflict", {"length": int}
    length: int


class RequestTimeout(Problem):
    """The request arrived too slowly. The service closed the connection."""

    status, slug = 408, "request-timeout"


class BodyTooLarge(Problem):
    """The body exceeds the service's limit.

    Attributes:
        limit: maximum body size in bytes.
    """

    status, slug, members = 413, "body-too-large", {"limit": int}
    limit: int


class UnsupportedMediaType(Problem):
    """The call does not accept this content type."""

    status, slug = 415, "unsupported-media-type"


class UnknownHost(Problem):
    """The service does not accept the host name of the base URL. Add it to the service's `--allowed-hosts`.

    Attributes:
        host: rejected host name.
    """

    status, slug, members = 421, "unknown-host", {"host": str}
    host: str


class HeadersTooLarge(Problem):
    """The request headers exceed the service's limit.

    Attributes:
        limit: maximum size of the request headers in bytes.
    """

    status, slug, members = 431, "headers-too-large", {"limit": int}
    limit: int


class FieldError(NamedTuple):
    """Error in one field of a request.

    Attributes:
        field: path of the field, for example `"k.shape"`.
        reason: description of the error.
    """

    field: str
    reason: str


class InvalidRequest(Problem):
    """Fields of the request are missing, unknown or wrong."""

    status, slug = 422, "invalid-request"

    @property
    def errors(self) -> list[FieldError]:
        """Return one entry for each invalid field."""
        listed = self.fields.get("errors")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return [FieldError(str(entry.get("field", "")), str(entry.get("reason", ""))) for entry in entries]


class ResponseTooLarge(InvalidRequest):
    """The response would exceed the service's limit. `Session.read` then reads in parts.

    Attributes:
        limit: maximum response size in bytes.
    """

    slug, members = "response-too-large", {"limit": int}
    limit: int

    @property
    def tokens(self) -> int | None:
        """Return how many of the requested tokens fit one response; None if the request was not for tokens."""
        tokens = self.fields.get("tokens")
        return tokens if isinstance(tokens, int) else None


class FileCorrupt(Problem):
    """The bytes of a session file do not match the digest at its end. Nothing was imported."""

    status, slug = 422, "file-corrupt"


class FileCorrupt(Problem):
    """The bytes of a session file do not match the digest at its end. Nothing was imported."""

    status, slug = 422, "file-corrupt"


class NonFinite(InvalidRequest):
    """A vector has NaN, infinity or overflow. An append that raises this has stored nothing.

    Attributes:
        stream: `"k"` or `"v"`; `"x"` for `encode`.
        layer: session layer of the first such vector; None for `encode`.
        head: head of that vector; None for `encode`.
        token: token of that vector, counted from the first token of the append; None for `encode`.
        row: index of that vector in x, for `encode`; None for an append.
    """

    slug = "non-finite"
    members: ClassVar[Mapping[str, Any]] = {
        "stream": str,
        **dict.fromkeys(("layer", "head", "token", "row"), int | None),
    }
    stream: str
    layer: int | None
    head: int | None
    token: int | None
    row: int | None


class InternalError(Problem):
    """The service failed, or a proxy between the client and the service failed."""

    status, slug = 500, "internal-error"


class Busy(Problem):
    """The service is overloaded now."""

    status, slug = 503, "busy"


class StorageUnavailable(Busy):
    """The disk store cannot be read or written now."""

    slug = "storage-unavailable"


class ShuttingDown(Problem):
    """The service stopped before it responded. It may have carried out the request, so the client does not retry."""

    status, slug = 503, "shutting-down"


class InsufficientStorage(Problem):
    """The service has no space for the session in memory or on disk."""

    status, slug = 507, "insufficient-storage"


class QuotaExceeded(InsufficientStorage):
    """The tenant's quota is used up. It does not depend on the space that other tenants use.

    Attributes:
        resource: limited resource: `"bytes"` or `"sessions"`.
        needed: additional amount that the call needs.
        quota: maximum amount for the tenant.
    """

    slug, members = "quota-exceeded", {"resource": str, "needed": int, "quota": int}
    resource: str
    needed: int
    quota: int
