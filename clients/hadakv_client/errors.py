"""What can go wrong between a caller and the service.

HadakvError
├── TransportError               no answer came
│   ├── ConnectionLost           the connection could not be made, or broke
│   └── Timeout                  it took too long
├── ProtocolError                an answer came that this client cannot read
└── Problem                      the service refused, and says why
    ├── MalformedBody            400
    ├── MalformedRequest         400  what arrived was not HTTP
    ├── Unauthorized             401  missing or wrong token
    ├── ForbiddenOrigin          403  sent as by a web page of another site
    ├── NotFound                 404  no such call
    │   └── SessionNotFound           no such session, or it is another tenant's
    ├── SessionDamaged           410  what is stored of the session is not what was written
    ├── Conflict                 409
    │   ├── ShapeMismatch             the tensors disagree with the session
    │   ├── CodecMismatch             the codec asked for is not the session's
    │   ├── SessionExists             `create` of one of another shape, or an id that is taken
    │   └── PositionConflict          the append is not at the end: `length`
    ├── TooSlow                  408  the request took too long to arrive
    ├── BodyTooLarge             413  more than `limit` bytes
    ├── UnsupportedMediaType     415
    ├── UnknownHost              421  the base URL's name is not the service's: `host`
    ├── InvalidRequest           422  fields are wrong: `errors`
    │   ├── AnswerTooLarge            the answer would have more than `limit` bytes
    │   └── NonFinite                 NaN, infinity or overflow: `stream`, `layer`, `head`, `token`
    ├── HeadTooLarge             431  the headers have more than `limit` bytes
    ├── InternalError            500  and every other 5xx
    ├── Busy                     503  to be tried again after `retry_after`
    │   └── TierUnavailable           the disk cannot be used now
    ├── Ending                   503  the service ended before it answered, and may have done it
    └── InsufficientStorage      507
        └── QuotaExceeded             more than the tenant may have: `resource`, `needed`, `quota`

Arguments that could never be sent are a `TypeError` or a `ValueError`, raised before anything is.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class HadakvError(Exception):
    """Base of every error raised by `hadakv_client`."""


class TransportError(HadakvError):
    """No answer came.

    Attributes:
        sent: whether the request may have reached the service and been carried out.
    """

    def __init__(self, message: str, sent: bool = True) -> None:
        # All arguments go to Exception, so that errors survive being pickled.
        super().__init__(message, sent)
        self.sent = sent

    def __str__(self) -> str:
        return str(self.args[0])


class ConnectionLost(TransportError):
    """The connection could not be made, or broke before the answer was complete."""


class Timeout(TransportError):
    """The service took longer than the client waits."""


class ProtocolError(HadakvError):
    """An answer came that this client cannot read: not from this service, or from another version of it."""


class Problem(HadakvError):
    """The service refused, and says why (RFC 9457).

    Attributes:
        status: the HTTP status.
        slug: the kind of problem, for example `"position-conflict"`; empty where the answer names none.
        title: the kind of problem, in words.
        detail: this occurrence, in words.
        fields: further members of the problem document.
        retry_after: seconds after which to try again, where the service says so.
    """

    status: int = 0
    slug: str = ""
    # Members of the document that become attributes, and their types; without them it is of a parent's kind.
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
        """What the service's log calls the request; empty where the answer does not say."""
        return str(self.fields.get("request_id") or "")

    def __str__(self) -> str:
        kind = f"{self.status} {self.slug}".rstrip()
        return f"{self.detail or self.title or 'The service refused.'} ({kind})"


class MalformedBody(Problem):
    """The service could not parse the body."""

    status, slug = 400, "malformed-body"


class MalformedRequest(Problem):
    """What arrived was not HTTP: something between the client and the service spoils it."""

    status, slug = 400, "malformed-request"


class Unauthorized(Problem):
    """The token is missing or wrong."""

    status, slug = 401, "unauthorized"


class ForbiddenOrigin(Problem):
    """The request looked as if a web page of another site had sent it."""

    status, slug = 403, "forbidden-origin"


class NotFound(Problem):
    """There is nothing at that address: the base URL is another server's, or this service lacks the call."""

    status, slug = 404, "not-found"


class SessionNotFound(NotFound):
    """The caller has no session of that id: never made, deleted, expired or evicted."""

    slug = "session-not-found"


class SessionDamaged(Problem):
    """What is stored of the session is not what was written; delete it and send it again."""

    status, slug = 410, "session-damaged"


class Conflict(Problem):
    """The request contradicts what is stored."""

    status = 409


class ShapeMismatch(Conflict):
    """The tensors disagree with the session's shape."""

    slug = "shape-mismatch"


class CodecMismatch(Conflict):
    """The codec asked for is not the session's."""

    slug = "codec-mismatch"


class SessionExists(Conflict):
    """The session to be created exists with another shape, or the id to fork or import to is taken."""

    slug = "session-exists"


class PositionConflict(Conflict):
    """The append is not at the end of its layers.

    Attributes:
        length: how many tokens those layers have.
    """

    slug, members = "position-conflict", {"length": int}
    length: int


class TooSlow(Problem):
    """The request took too long to arrive; the service closed the connection."""

    status, slug = 408, "too-slow"


class BodyTooLarge(Problem):
    """The body is over the service's limit.

    Attributes:
        limit: that limit, in bytes.
    """

    status, slug, members = 413, "body-too-large", {"limit": int}
    limit: int


class UnsupportedMediaType(Problem):
    """The content type is none the call reads."""

    status, slug = 415, "unsupported-media-type"


class UnknownHost(Problem):
    """The service does not go by the base URL's name: `--allowed-hosts` has it do so.

    Attributes:
        host: that name.
    """

    status, slug, members = 421, "unknown-host", {"host": str}
    host: str


class HeadTooLarge(Problem):
    """The request's headers are over the service's limit.

    Attributes:
        limit: that limit, in bytes.
    """

    status, slug, members = 431, "head-too-large", {"limit": int}
    limit: int


class FieldError(NamedTuple):
    """What is wrong with one field of a request."""

    field: str
    reason: str


class InvalidRequest(Problem):
    """Fields are missing, unknown or wrong."""

    status, slug = 422, "invalid-request"

    @property
    def errors(self) -> list[FieldError]:
        """Each wrong field with its reason."""
        listed = self.fields.get("errors")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return [FieldError(str(entry.get("field", "")), str(entry.get("reason", ""))) for entry in entries]


class AnswerTooLarge(InvalidRequest):
    """What was asked for does not fit one answer; ask for less at a time.

    Attributes:
        limit: what an answer may have, in bytes.
    """

    slug, members = "answer-too-large", {"limit": int}
    limit: int


class NonFinite(InvalidRequest):
    """NaN, infinity or overflow in a vector; an append then stored nothing.

    Attributes:
        stream: `"k"` or `"v"`; `"x"` for `encode`.
        layer: the layer of the first such vector, as the session counts layers; None for `encode`.
        head: its head; None for `encode`.
        token: its token, counted from the append's first; None for `encode`.
        row: which vector of x it is, for `encode`.
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
    """The service failed, or something between it and the client did."""

    status, slug = 500, "internal-error"


class Busy(Problem):
    """The service has too much to do right now."""

    status, slug = 503, "busy"


class TierUnavailable(Busy):
    """What lies below memory cannot be read or written now."""

    slug = "tier-unavailable"


class Ending(Problem):
    """The service ended before it answered, and may have done what was asked; it is not asked again by itself."""

    status, slug = 503, "ending"


class InsufficientStorage(Problem):
    """The session does not fit the service's memory budget."""

    status, slug = 507, "insufficient-storage"


class QuotaExceeded(InsufficientStorage):
    """The tenant may not have so much; room that others take makes no difference.

    Attributes:
        resource: what there is too little of: `"bytes"` or `"sessions"`.
        needed: how much more of it the call takes.
        quota: how much of it the tenant may have.
    """

    slug, members = "quota-exceeded", {"resource": str, "needed": int, "quota": int}
    resource: str
    needed: int
    quota: int
