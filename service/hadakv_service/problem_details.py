"""Turns errors into `application/problem+json` (RFC 9457). The only place that does."""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from hadakv_service.errors import ServiceError
from hadakv_service.observability.request_record import current_id

log = logging.getLogger(__name__)

TYPE_PREFIX = "urn:hadakv:problem:"


def problem(
    status: int, slug: str, title: str, detail: str, fields: Mapping[str, Any], headers: Mapping[str, str]
) -> Response:
    """A problem document as a response."""
    document = {"type": TYPE_PREFIX + slug, "title": title, "status": status, "detail": detail, **fields}
    if request_id := current_id():
        document["request_id"] = request_id
    return Response(msgspec.json.encode(document), status, dict(headers), "application/problem+json")


def problem_response(error: ServiceError) -> Response:
    """The problem a service error is."""
    return problem(error.status, error.slug, error.title, error.detail, error.fields, error.headers)


def unexpected_error_response(error: Exception) -> Response:
    """The problem of an error that nobody expected, which is logged."""
    log.error("unforeseen error", exc_info=error)
    return problem(500, ServiceError.slug, ServiceError.title, "See the service's log.", {}, {})
