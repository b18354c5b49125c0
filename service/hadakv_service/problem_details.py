"""Rendering of errors as `application/problem+json` (RFC 9457). No other module does this."""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from hadakv_service.errors import ServiceError
from hadakv_service.observability.request_record import current_id, note_problem

log = logging.getLogger(__name__)

TYPE_PREFIX = "urn:hadakv:problem:"


def problem(
    status: int, slug: str, title: str, detail: str, fields: Mapping[str, Any], headers: Mapping[str, str]
) -> Response:
    """Return a response with a problem document.

    Args:
        status: HTTP status.
        slug: last part of the problem's `type`.
        title: kind of problem.
        detail: description of this occurrence.
        fields: additional members of the document.
        headers: additional response headers.
    """
    note_problem(slug)
    document = {"type": TYPE_PREFIX + slug, "title": title, "status": status, "detail": detail, **fields}
    if request_id := current_id():
        document["request_id"] = request_id
    return Response(msgspec.json.encode(document), status, dict(headers), "application/problem+json")


def problem_response(error: ServiceError) -> Response:
    """Return the response for a service error."""
    return problem(error.status, error.slug, error.title, error.detail, error.fields, error.headers)


def unexpected_error_response(error: Exception) -> Response:
    """Log an unexpected error and return a response with status 500."""
    log.error("unexpected error", exc_info=error)
    return problem(500, ServiceError.slug, ServiceError.title, "See the log of the service.", {}, {})
