"""Programs for calls that the documentation page cannot send, because their bodies are msgpack with tensors."""

import base64

from hadakv_service.http.openapi.examples import HEAD_DIM, SESSION, request_bytes

URL = "http://127.0.0.1:8765"
_REASON = "This page cannot send msgpack. Use the Python client or curl:"
_VECTORS = f"np.linspace(-1, 1, {HEAD_DIM}, dtype=np.float16)"
_CLIENT = 'with Client("{url}") as client:  # with tokens: Client("{url}", token=...)'
# What to do with the client, by operationId.
_PYTHON = {
    "appendTokens": f"""    x = {_VECTORS}.reshape(1, 1, 1, {HEAD_DIM})  # [layers, kv_heads, tokens, head_dim]
    print(client.session("{SESSION}").append(x, x, position=0))""",
    "readTokens": f"""    cache = client.session("{SESSION}").read(form="float16")
    print(cache.start, cache.stop, cache.k.shape)""",
    "encode": f"""    x = np.tile({_VECTORS}, (2, 1))  # [vectors, head_dim]
    print(client.encode(x, {{"bits": 6}}))""",
    "decode": f"""    x = {_VECTORS}.reshape(1, {HEAD_DIM})
    encoded = client.encode(x)
    print(client.decode(encoded, None, {HEAD_DIM}))""",
}
_CURL_BODIES = {
    "appendTokens": (f"/sessions/{SESSION}/kv", "AppendBody"),
    "encode": ("/encode", "EncodeBody"),
    "decode": ("/decode", "DecodeBody"),
}


def python(name: str) -> str:
    """Return the Python program of a call."""
    imports = ["import numpy as np"] if "np." in _PYTHON[name] else []
    return "\n".join([*imports, "from hadakv_client import Client", "", _CLIENT.format(url=URL), _PYTHON[name]])


def curl(name: str) -> str:
    """Return the shell command that sends the example of a call and prints the response as msgpack decodes it."""
    path, body = _CURL_BODIES[name]
    return (
        f"echo {base64.b64encode(request_bytes(body)).decode()} | base64 -d |\n"
        f"  curl -sS -H 'Content-Type: application/msgpack' --data-binary @- {URL}{path} |\n"
        "  python3 -c 'import msgpack, sys; print(msgpack.unpack(sys.stdin.buffer))'"
    )


def is_executable(name: str) -> bool:
    """Whether the documentation page can send the call."""
    return name not in _CURL_BODIES


def description(name: str) -> str:
    """Return Markdown to add to the description of a call; empty if it needs no program."""
    if name not in _PYTHON:
        return ""
    if is_executable(name):
        return f"\n\nThe response is a msgpack file. In Python:\n\n```python\n{python(name)}\n```"
    return f"\n\n{_REASON}\n\n```python\n{python(name)}\n```\n\n```sh\n{curl(name)}\n```"
