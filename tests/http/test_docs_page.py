"""The documentation page: open without a token, in groups, with examples and programs that work."""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hadakv_service.http.openapi import examples, snippets
from hadakv_service.http.openapi.groups import GROUPS, PLACES
from hadakv_service.http.openapi.schemas import schemas
from hadakv_service.http.routes import docs
from hadakv_service.testing import RunningService, running_service
from support.contract import JSON, MSGPACK, Caller, Json
from support.inputs.session_files import OCTETS

PROGRAMS = ["appendTokens", "readTokens", "encode", "decode"]


@pytest.fixture(scope="module")
def empty() -> Iterator[RunningService]:
    """Start a service without the sessions of other tests."""
    with running_service() as service:
        yield service


@pytest.fixture
def trying(empty: RunningService) -> Iterator[Caller]:
    """Return a client of a service that has no sessions."""
    with Caller(empty.url) as caller:
        yield caller
        for name in (examples.SESSION, examples.FORK):
            caller.send("DELETE", f"/sessions/{name}")


@pytest.fixture(scope="module")
def operations(empty: RunningService) -> dict[str, Json]:
    """Return method, path and description of each call by its operationId."""
    with Caller(empty.url) as caller:
        paths = caller.get("/openapi.json").body["paths"]
    return {
        operation["operationId"]: {**operation, "method": method.upper(), "path": path}
        for path, item in paths.items()
        for method, operation in item.items()
    }


def test_page_and_document_need_no_token_and_reveal_nothing(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'token-of-ann').hexdigest()}", "utf-8")

    with running_service("--token-file", str(tokens)) as service, Caller(service.url) as stranger:
        with Caller(service.url, "token-of-ann") as ann:
            before = stranger.get("/openapi.json")
            ann.send("PUT", "/sessions/secret-session")
            after, own = stranger.get("/openapi.json"), ann.get("/openapi.json")
        opened = [stranger.http.get(path, follow_redirects=True) for path in sorted(docs.OPEN_PATHS)]
        wrong = stranger.send("GET", "/docs", authorization="Bearer wrong")
        others = [stranger.get(path) for path in ("/docs/", "/docs/x", "/openapi.json/", "/metrics", "/sessions")]

    assert before.content == after.content == own.content
    assert b"secret-session" not in own.content
    assert [response.status_code for response in opened] == [200] * len(docs.OPEN_PATHS)
    assert wrong.status == 200
    assert [response.status for response in others] == [401] * 5


def test_calls_are_grouped_in_order(operations: dict[str, Json], trying: Caller) -> None:
    document = trying.get("/openapi.json").body

    assert [tag["name"] for tag in document["tags"]] == ["Sessions", "Codec", "Service"]
    assert set(PLACES) == set(operations)
    assert {name: (each["tags"], each["summary"]) for name, each in operations.items()} == {
        name: ([tag], summary) for name, (tag, summary) in PLACES.items()
    }
    assert list(operations) == list(PLACES)
    summaries = [summary for calls in GROUPS.values() for summary in calls.values()]
    assert len(set(summaries)) == len(summaries)


def test_examples_that_the_page_sends_are_accepted(operations: dict[str, Json], trying: Caller) -> None:
    sent = {}

    for name in ["createSession", "appendTokens", *PLACES]:
        operation = operations[name]
        path = operation["path"].replace("{id}", operation.get("parameters", [{}])[0].get("example", ""))
        content = next(iter(operation.get("requestBody", {}).get("content", {}).items()), None)
        if name == "appendTokens":
            trying.send("POST", path, examples.request_bytes("AppendBody"))
        elif name == "importSession":
            file = trying.get(path.replace("/import", "/export")).content
            trying.send("DELETE", path.removesuffix("/import"))
            sent[name] = trying.send("POST", path, file, content_type=OCTETS).status
        elif name != "deleteSession" and operation.get("x-executable", True):
            body = msgspec.json.encode(content[1]["examples"]["example"]["value"]) if content else b""
            sent[name] = trying.send(operation["method"], path, body, content_type=JSON).status
    sent["deleteSession"] = trying.send("DELETE", f"/sessions/{examples.SESSION}").status

    assert set(sent) == {name for name in operations if operations[name].get("x-executable", True)}
    assert {status // 100 for status in sent.values()} == {2}


def test_calls_that_the_page_cannot_send_have_programs(operations: dict[str, Json]) -> None:
    only_msgpack = {
        name for name, each in operations.items() if list(each.get("requestBody", {}).get("content", {})) == [MSGPACK]
    }

    assert {name for name, each in operations.items() if each.get("x-executable") is False} == only_msgpack
    for name in only_msgpack:
        assert f"```python\n{snippets.python(name)}\n```" in operations[name]["description"]
        assert f"```sh\n{snippets.curl(name)}\n```" in operations[name]["description"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_python_programs_run(empty: RunningService, trying: Caller, name: str) -> None:
    trying.send("POST", f"/sessions/{examples.SESSION}/kv", examples.request_bytes("AppendBody"))
    output = io.StringIO()

    with contextlib.redirect_stdout(output):
        exec(snippets.python(name).replace(snippets.URL, empty.url), {})

    assert output.getvalue()


@pytest.mark.parametrize("name", [name for name in PROGRAMS if not snippets.is_executable(name)])
def test_curl_commands_run(empty: RunningService, trying: Caller, name: str) -> None:  # noqa: ARG001 - it deletes the session
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-c", f"set -eo pipefail; {snippets.curl(name).replace(snippets.URL, empty.url)}"]

    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PATH": path})

    assert (done.returncode, done.stderr) == (0, "")
    assert "'dtype'" in done.stdout


def test_example_responses_are_real(operations: dict[str, Json], trying: Caller) -> None:
    def example(name: str, status: str = "200") -> Json:
        content = operations[name]["responses"][status]["content"]
        found: Json = next(iter(content.values()))["examples"]["example"]["value"]
        return found

    def shown(body: Json) -> Json:
        shown_: Json = msgspec.json.decode(msgspec.json.encode(body))
        return shown_

    append = trying.send("POST", f"/sessions/{examples.SESSION}/kv", examples.request_bytes("AppendBody"))
    read = trying.get(f"/sessions/{examples.SESSION}/kv").body
    encoded = trying.send("POST", "/encode", examples.request_bytes("EncodeBody")).body
    decoded = trying.send("POST", "/decode", examples.request_bytes("DecodeBody")).body
    info = trying.get(f"/sessions/{examples.SESSION}").body

    assert append.status == 201
    assert shown(append.body) == example("appendTokens", "201")
    assert shown(read).items() >= example("readTokens").items()
    assert shown(encoded) == example("encode")
    assert shown(decoded) == example("decode")
    varying = {"created", "last_used", "durability", "declared_layers"}
    assert info.keys() == example("getSession").keys()
    assert {key: info[key] for key in info.keys() - varying} == {
        key: value for key, value in example("getSession").items() if key not in varying
    }


def test_text_examples_are_of_fields_that_exist() -> None:
    properties = schemas()["Readiness"]["properties"]

    assert properties["backend"]["examples"] == ["cpu"]
    assert np.all([properties[name]["type"] == "string" for name in ("version", "backend", "detail")])
