"""The attributes of uvicorn's HTTP protocol that hadakv uses. A new version of uvicorn must still have them.

These attributes are not documented. When a test here fails, it names what uvicorn changed: adapt `UvicornAdapter`.
"""

import ast
import asyncio
import inspect
from collections import deque
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

from hadakv_service.server import direct_receive, protocol, uvicorn_adapter
from hadakv_service.server.protocol import HttpProtocol

Contract = dict[str, type | tuple[type, ...]]

# Attributes of an HttpToolsProtocol that has received a request's headers.
PROTOCOL: Contract = {
    "_start_asgi_task": MethodType,
    "app_state": dict,
    "client": tuple,
    "cycle": RequestResponseCycle,
    "flow": FlowControl,
    "headers": list,
    "loop": asyncio.AbstractEventLoop,
    "parser": httptools_impl.httptools.HttpRequestParser,
    "pipeline": deque,
    "scope": dict,
    "server_state": ServerState,
    "transport": asyncio.Transport,
    "url": bytes,
}
# Methods that HttpProtocol overrides or calls. The parser calls those in the second line, asyncio those in the first.
CALLBACKS = [
    *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"),
    *("on_header", "on_headers_complete", "on_body", "on_message_complete", "on_response_complete"),
]
# Attributes of a RequestResponseCycle before its response.
CYCLE: Contract = {
    "body": bytearray,
    "disconnected": bool,
    "expected_content_length": int,
    "flow": FlowControl,
    "keep_alive": bool,
    "message_event": asyncio.Event,
    "more_body": bool,
    "on_response": MethodType,
    "response_complete": bool,
    "response_started": bool,
    "scope": dict,
    "transport": asyncio.Transport,
    "waiting_for_100_continue": bool,
}
FLOW: Contract = {"drain": MethodType, "read_paused": bool, "resume_reading": MethodType, "write_paused": bool}
STATE: Contract = {"connections": set, "default_headers": list, "total_requests": int}


class Wire(asyncio.Transport):
    """Transport to nowhere."""

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Is never run."""


@pytest.fixture(scope="module")
def connection() -> Iterator[HttpToolsProtocol]:
    """Return uvicorn's own protocol after the headers of a request."""
    loop = asyncio.new_event_loop()

    async def receive_head() -> HttpToolsProtocol:
        made = HttpToolsProtocol(Config(app, log_config=None), ServerState(), {}, loop)
        made.connection_made(Wire({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}))
        made.data_received(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n")
        for task in made.tasks:
            task.cancel()
        return made

    yield loop.run_until_complete(receive_head())
    loop.close()


def changed(instance: object, contract: Contract) -> list[str]:
    """Return the names of attributes that are missing or have another type."""
    return [name for name, kind in contract.items() if not isinstance(getattr(instance, name, None), kind)]


def missing_callbacks(cls: type) -> list[str]:
    """Return the names of callbacks that a class does not define."""
    return [name for name in CALLBACKS if not isinstance(getattr(cls, name, None), FunctionType)]


def test_uvicorn_has_the_attributes_we_use(connection: HttpToolsProtocol) -> None:
    assert changed(connection, PROTOCOL) == []
    assert changed(connection.cycle, CYCLE) == []
    assert changed(connection.flow, FLOW) == []
    assert changed(connection.server_state, STATE) == []


def test_uvicorn_has_the_callbacks_we_override() -> None:
    assert missing_callbacks(HttpToolsProtocol) == []


def test_uvicorn_has_status_lines() -> None:
    assert httptools_impl.STATUS_LINE[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


# The contract itself


class Without:
    """An object that lacks one attribute of another."""

    def __init__(self, instance: object, name: str) -> None:
        self._instance, self._name = instance, name

    def __getattr__(self, name: str) -> object:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._instance, name)


@pytest.mark.parametrize("name", PROTOCOL)
def test_contract_names_a_missing_protocol_attribute(connection: HttpToolsProtocol, name: str) -> None:
    assert changed(Without(connection, name), PROTOCOL) == [name]


@pytest.mark.parametrize("name", CYCLE)
def test_contract_names_a_missing_cycle_attribute(connection: HttpToolsProtocol, name: str) -> None:
    assert changed(Without(connection.cycle, name), CYCLE) == [name]


def test_contract_names_an_attribute_of_another_type(connection: HttpToolsProtocol) -> None:
    class Renamed:
        pipeline = "a string"

        def __getattr__(self, name: str) -> object:
            return getattr(connection, name)

    assert changed(Renamed(), PROTOCOL) == ["pipeline"]


def test_contract_names_a_missing_callback() -> None:
    class Renamed:
        connection_made = connection_lost = data_received = pause_writing = HttpToolsProtocol.resume_writing
        resume_writing = on_header = on_headers_complete = on_body = on_message_complete = on_header_value = app

    assert missing_callbacks(Renamed) == ["on_response_complete"]


# Completeness: the contract lists every attribute that the code uses


def attributes_of(module: object, *owners: str) -> set[str]:
    """Return the names of attributes that a module's code reads or writes on expressions with these texts."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))  # type: ignore[arg-type]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners}


def test_contract_lists_all_attributes_the_adapter_uses() -> None:
    adapter = uvicorn_adapter
    assert attributes_of(adapter, "connection", "self._connection") <= PROTOCOL.keys()
    assert attributes_of(adapter, "cycle", "cycles[0]", "self._cycles[0]", "self._connection.cycle") == CYCLE.keys()
    assert attributes_of(adapter, "connection.flow", "self._connection.flow", "cycle.flow") == FLOW.keys()


def test_protocol_uses_no_uvicorn_state_but_the_adapter() -> None:
    own = {*vars(HttpProtocol), *attributes_assigned_in_init()}
    used = attributes_of(protocol, "self") - own

    assert used == {"app_state", "client", "scope", "transport"}
    assert attributes_of(protocol, "super()") - {"__init__"} <= set(CALLBACKS)
    assert attributes_of(protocol, "cycle", "self.cycle") == set()
    assert attributes_of(direct_receive, "self._connection") - vars(HttpProtocol).keys() - set(CALLBACKS) == {
        "loop",
        "transport",
    }


def attributes_assigned_in_init() -> set[str]:
    tree = ast.parse(inspect.getsource(protocol))
    (init,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return {node.attr for node in ast.walk(init) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def test_server_waits_for_tasks_in_the_overridden_method() -> None:
    assert inspect.iscoroutinefunction(Server._wait_tasks_to_complete)
    assert "self._wait_tasks_to_complete()" in inspect.getsource(Server.shutdown)
