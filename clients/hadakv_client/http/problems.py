"""Conversion of problem documents (RFC 9457) to exceptions."""

from collections.abc import Iterator, Mapping
from typing import Any

from hadakv_client.errors import InternalError, Problem

TYPE_PREFIX = "urn:hadakv:problem:"
_STANDARD_MEMBERS = {"type", "title", "status", "detail"}


def problem(status: int, document: Mapping[str, Any], retry_after: float | None = None) -> Problem:
    """Return the exception for a problem document. The slug selects its class, or else the status.

    Args:
        status: HTTP status.
        document: parsed document; any member may be missing or wrong.
        retry_after: seconds from the Retry-After header.
    """
    type_ = str(document.get("type", ""))
    slug = type_.removeprefix(TYPE_PREFIX) if type_.startswith(TYPE_PREFIX) else ""
    title, detail = str(document.get("title", "")), str(document.get("detail", ""))
    fields = {name: value for name, value in document.items() if name not in _STANDARD_MEMBERS}
    error_class = _nearest_complete_class(_class_for(status, slug), fields)
    return error_class(status, slug, title, detail, fields, retry_after)


def _nearest_complete_class(error_class: type[Problem], fields: Mapping[str, Any]) -> type[Problem]:
    """Return the class itself, or its nearest parent whose members are all in the document."""
    for each in error_class.__mro__:
        if issubclass(each, Problem) and all(isinstance(fields.get(name), of) for name, of in each.members.items()):
            return each
    return Problem


def _class_for(status: int, slug: str) -> type[Problem]:
    classes = list(_class_tree(Problem))
    by_slug = [each for each in classes if slug and each.slug == slug]
    by_status = [each for each in classes if each.status == status]
    return (by_slug or by_status or [InternalError if status >= 500 else Problem])[0]


def _class_tree(error_class: type[Problem]) -> Iterator[type[Problem]]:
    """Yield a class and all its subclasses, parents first."""
    yield error_class
    for child in error_class.__subclasses__():
        yield from _class_tree(child)
