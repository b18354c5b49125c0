"""The synchronous and the asynchronous classes have the same public methods and signatures."""

import inspect
import re
from typing import Any

import pytest

from hadakv_client import AsyncClient, AsyncSession, Client, Session

PAIRS = [(Client, AsyncClient), (Session, AsyncSession)]
# Only these names may differ: classes, the module of a class, and the method that closes the client.
SYNCHRONOUS = {
    "AsyncIterator": "Iterator",
    "AsyncSession": "Session",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "aclose": "close",
    "async_session": "session",
}


def synchronous(text: str) -> str:
    """Return the text with asynchronous names replaced by their synchronous counterparts."""
    return re.sub(r"\w+", lambda match: SYNCHRONOUS.get(match[0], match[0]), text)


def public_members(owner: type) -> dict[str, Any]:
    return {name: member for name, member in vars(owner).items() if not name.startswith("_") or name == "__init__"}


def signature(function: Any) -> str:
    """Return names, kinds, defaults and annotations of the parameters, and the return annotation."""
    function = function.fget if isinstance(function, property) else function
    return str(inspect.signature(function)).replace("'", "")


@pytest.mark.parametrize(("sync_class", "async_class"), PAIRS, ids=["client", "session"])
def test_both_classes_have_the_same_public_members(sync_class: type, async_class: type) -> None:
    assert {synchronous(name) for name in public_members(async_class)} == public_members(sync_class).keys()


@pytest.mark.parametrize(("sync_class", "async_class"), PAIRS, ids=["client", "session"])
def test_both_classes_have_the_same_signatures(sync_class: type, async_class: type) -> None:
    expected = {name: signature(member) for name, member in public_members(sync_class).items()}

    found = {synchronous(name): synchronous(signature(member)) for name, member in public_members(async_class).items()}

    assert found == expected


@pytest.mark.parametrize(("sync_class", "async_class"), PAIRS, ids=["client", "session"])
def test_members_are_properties_or_coroutines_alike(sync_class: type, async_class: type) -> None:
    """Every asynchronous method except `session` is a coroutine function or an asynchronous generator."""
    for name, member in public_members(async_class).items():
        counterpart = public_members(sync_class)[synchronous(name)]
        assert isinstance(member, property) == isinstance(counterpart, property)
        if inspect.isfunction(member) and name not in ("__init__", "session"):
            assert inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member), name
