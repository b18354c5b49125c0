"""Turns problem documents into exceptions. The only place that does."""

from collections.abc import Iterator, Mapping
from typing import Any

from hadakv_client.errors import InternalError, Problem

TYPE_PREFIX = "urn:hadakv:problem:"
_WORDS = {"type", "title", "status", "detail"}


def problem(status: int, document: Mapping[str, Any], retry_after: float | None = None) -> Problem:
    """The exception for a problem document: of the class of its slug, else of the nearest to its status.

    Args:
        status: the HTTP status.
        document: the parsed document; any member may be missing or wrong.
        retry_after: seconds, from the header of that name.
    """
    type_ = str(document.get("type", ""))
    slug = type_.removeprefix(TYPE_PREFIX) if type_.startswith(TYPE_PREFIX) else ""
    title, detail = str(document.get("title", "")), str(document.get("detail", ""))
    fields = {name: value for name, value in document.items() if name not in _WORDS}
    kind = _with_members(_kind(status, slug), fields)
    return kind(status, slug, title, detail, fields, retry_after)


def _with_members(kind: type[Problem], fields: Mapping[str, Any]) -> type[Problem]:
    """The class itself, or the nearest above it whose members the document has."""
    for each in kind.__mro__:
        if issubclass(each, Problem) and all(isinstance(fields.get(name), of) for name, of in each.members.items()):
            return each
    return Problem


def _kind(status: int, slug: str) -> type[Problem]:
    kinds = list(_kinds(Problem))
    by_slug = [kind for kind in kinds if slug and kind.slug == slug]
    by_status = [kind for kind in kinds if kind.status == status]
    return (by_slug or by_status or [InternalError if status >= 500 else Problem])[0]


def _kinds(kind: type[Problem]) -> Iterator[type[Problem]]:
    """A class and all below it, parents first."""
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)
