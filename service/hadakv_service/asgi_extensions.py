"""Optional ASGI extensions of the server: one function each, with a fallback for servers that lack it.

An application calls these functions and works under any ASGI server. hadakv's own protocol offers three extensions in
`scope["extensions"]`. They avoid copies and system calls, and detect disconnected clients earlier. In the other
direction, the application offers the server one function in its lifespan state. It records requests that the server
rejects.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

Headers = Sequence[tuple[bytes, bytes]]
ReceiveInto = Callable[[memoryview], Awaitable[bool]]
SendResponse = Callable[[int, Headers, bytes], Awaitable[bool]]
IsDisconnected = Callable[[], bool]
# Arguments: client address, scope (None if the headers could not be parsed), status. Result: the request's id.
RecordRejected = Callable[[tuple[str, int] | None, Scope | None, int, str], bytes]

# Keys of scope["extensions"]. The values are a ReceiveInto, a SendResponse and an IsDisconnected.
RECEIVE_INTO = "hadakv.receive_into"
SEND_RESPONSE = "hadakv.send_response"
CLIENT_DISCONNECTED = "hadakv.is_disconnected"
# Key of the lifespan state. The value is a RecordRejected.
RECORD_REJECTED = "hadakv.record_rejected"


@dataclass(slots=True)
class OpenWork:
    """What the server has open. The server puts its own collections here when it starts.

    Attributes:
        connections: open connections.
        requests: requests that were received and not answered.
    """

    connections: Collection[object] = ()
    requests: Collection[object] = ()


async def receive_into(scope: Scope, receive: Receive, buffer: memoryview) -> bool:
    """Receive the whole request body into a buffer.

    The fallback copies the body from `http.request` messages.

    Args:
        scope: ASGI scope of the request.
        receive: ASGI receive function of the request.
        buffer: writable bytes, exactly as long as the body (its Content-Length).

    Returns:
        Whether the buffer was filled. False if the client disconnected first, or if the body has another length.
    """
    extension: ReceiveInto | None = _extension(scope, RECEIVE_INTO)
    if extension is not None:
        return await extension(buffer)
    filled, more_body = 0, True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        chunk, more_body = message.get("body", b""), message.get("more_body", False)
        if filled + len(chunk) > len(buffer):
            return False
        buffer[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return filled == len(buffer)


async def send_response(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a complete response, in one write where the server can.

    The fallback sends two messages. Do not use this function for HEAD requests.

    Args:
        scope: ASGI scope of the request.
        send: ASGI send function of the request; used by the fallback only.
        status: HTTP status code.
        headers: response headers. They include the body's Content-Length.
        body: the whole body.
    """
    extension: SendResponse | None = _extension(scope, SEND_RESPONSE)
    if extension is not None:
        await extension(status, headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def is_disconnected(scope: Scope) -> bool:
    """Whether the client disconnected before its response was complete; False where the server cannot tell."""
    extension: IsDisconnected | None = _extension(scope, CLIENT_DISCONNECTED)
    return extension is not None and extension()


def replace_send_response(scope: Scope, replacement: SendResponse) -> SendResponse | None:
    """Let middleware see responses that are sent in one write, and not only those sent through `send`.

    Args:
        scope: ASGI scope of the request.
        replacement: called instead of the server's function, if there is one. It should call that function.

    Returns:
        The server's function, or None if there is none. Then nothing is replaced.
    """
    original: SendResponse | None = _extension(scope, SEND_RESPONSE)
    if original is not None:
        scope["extensions"][SEND_RESPONSE] = replacement
    return original


def remove_send_response(scope: Scope) -> None:
    """Make `send_response` use `send`, for middleware that changes the messages passed to `send`."""
    if extensions := scope.get("extensions"):
        extensions.pop(SEND_RESPONSE, None)


def record_rejected(
    state: dict[str, Any], client: tuple[str, int] | None, scope: Scope | None, status: int, reason: str
) -> bytes:
    """Tell the application about a request that the server rejected by itself.

    Args:
        state: lifespan state of the application.
        client: address of the client, if known.
        scope: ASGI scope of the request; None if its headers could not be parsed.
        status: HTTP status code of the server's response.
        reason: last part of the type of the problem in the response.

    Returns:
        The request's id; empty if the application does not record rejected requests.
    """
    record: RecordRejected | None = state.get(RECORD_REJECTED)
    return b"" if record is None else record(client, scope, status, reason)


def _extension(scope: Scope, name: str) -> Any:
    extensions = scope.get("extensions")
    return extensions.get(name) if extensions else None
