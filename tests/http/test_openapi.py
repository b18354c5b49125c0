"""The probes, the OpenAPI document and the documentation page."""

import base64
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgpack
import pytest

from hadakv_service.http.openapi.problem_schemas import error_classes
from hadakv_service.testing import RunningService
from support.contract import JSON, MSGPACK, Caller, Json
from support.inputs.arrays import pair
from support.inputs.session_files import OCTETS


def test_probes_report_version_and_backend(server: RunningService, caller: Caller) -> None:
    health, ready = caller.get("/healthz").body, caller.get("/readyz").body

    assert health["status"] == "ok"
    assert (ready["status"], ready["version"]) == ("ready", health["version"])
    assert f"{ready['backend']} backend" in server.startup_line
    assert ready["detail"] in server.startup_line
    assert ready["budget_nbytes"] == 1 << 30
    assert 0 <= ready["used_nbytes"] <= ready["budget_nbytes"]


@pytest.fixture(scope="module")
def document(caller: Caller) -> Json:
    found: Json = caller.get("/openapi.json").body
    return found


def operations(document: Json) -> dict[tuple[str, str], Json]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in ("get", "put", "post", "delete", "patch")
    }


def references(part: Any) -> set[str]:
    """Return every `$ref` in a document."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    own = {part["$ref"]} if isinstance(part, dict) and isinstance(part.get("$ref"), str) else set()
    return own.union(*map(references, inner))


def test_document_has_every_call(document: Json) -> None:
    assert set(operations(document)) == {
        ("POST", "/sessions/{id}/kv"),
        ("GET", "/sessions/{id}/kv"),
        ("PUT", "/sessions/{id}"),
        ("GET", "/sessions/{id}"),
        ("DELETE", "/sessions/{id}"),
        ("GET", "/sessions"),
        ("POST", "/encode"),
        ("POST", "/decode"),
        ("POST", "/sessions/{id}/truncate"),
        ("POST", "/sessions/{id}/fork"),
        ("GET", "/sessions/{id}/export"),
        ("POST", "/sessions/{id}/import"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_document_is_complete(document: Json) -> None:
    found = operations(document)
    ids = [operation["operationId"] for operation in found.values()]

    assert document["openapi"].startswith("3.")
    assert len(set(ids)) == len(ids)
    for (_, path), operation in found.items():
        in_path = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert in_path == ({"id"} if "{id}" in path else set())
        assert operation["summary"]
        assert all(response["description"] for response in operation["responses"].values())
    for reference_ in references(document):
        part = document
        for step in reference_.removeprefix("#/").split("/"):
            part = part[step]


def test_document_has_every_status_of_a_call(document: Json) -> None:
    found = operations(document)
    reported = {call: {int(status) for status in operation["responses"]} for call, operation in found.items()}

    always = {400, 403, 408, 421, 422, 431, 501, 503}
    any_ = {401, 422} | always
    changing = {410, 413, 415, 507} | any_
    assert reported == {
        ("POST", "/sessions/{id}/kv"): {200, 201, 409} | changing,
        ("GET", "/sessions/{id}/kv"): {200, 404, 410} | any_,
        ("PUT", "/sessions/{id}"): {200, 201, 409} | changing,
        ("GET", "/sessions/{id}"): {200, 404, 410} | any_,
        ("DELETE", "/sessions/{id}"): {204, 404} | any_,
        ("GET", "/sessions"): {200} | any_,
        ("POST", "/sessions/{id}/truncate"): {200, 404} | changing,
        ("POST", "/sessions/{id}/fork"): {201, 404, 409} | changing,
        ("GET", "/sessions/{id}/export"): {200, 404, 410} | any_,
        ("POST", "/sessions/{id}/import"): {201, 409} | changing,
        ("POST", "/encode"): {200, 413, 415} | any_,
        ("POST", "/decode"): {200, 413, 415} | any_,
        ("GET", "/metrics"): {200} | any_,
        ("GET", "/healthz"): {200} | always,
        ("GET", "/readyz"): {200} | always,
    }


def test_every_error_has_a_schema_that_a_call_uses(document: Json) -> None:
    schemas = document["components"]["schemas"]
    reported = {part["const"] for schema in schemas.values() if (part := schema.get("properties", {}).get("type"))}

    assert reported == {f"urn:hadakv:problem:{kind.slug}" for kind in error_classes()}
    assert {f"#/components/schemas/{name}" for name in schemas} <= references(document)


def test_every_call_has_a_name_and_content_types(document: Json) -> None:
    found = operations(document)
    content_types_by_call = {
        operation["operationId"]: {kind for status in ("200", "201") for kind in content_types(operation, status)}
        for operation in found.values()
    }

    both = {MSGPACK, JSON}
    assert content_types_by_call == {
        **{name: {MSGPACK} for name in ("appendTokens", "readTokens", "encode", "decode")},
        **dict.fromkeys(("createSession", "getSession", "listSessions", "truncateSession", "forkSession"), both),
        **dict.fromkeys(("importSession", "healthz", "readyz"), both),
        **{"exportSession": {OCTETS}, "deleteSession": set()},
        "metrics": {"text/plain", "application/openmetrics-text"},
    }


def content_types(operation: Json, status: str) -> set[str]:
    return set(operation["responses"].get(status, {}).get("content", {}))


def test_examples_of_the_document_are_accepted(caller: Caller, document: Json, session: str) -> None:
    tried = 0

    for (method, path), operation in operations(document).items():
        examples = operation.get("requestBody", {}).get("content", {}).get(MSGPACK, {}).get("examples", {})
        for example in examples.values():
            body = base64.b64decode(example["x-msgpack-base64"])
            if path.endswith(("/truncate", "/fork")):
                caller.append(f"{session}.{tried}", *pair(1, 1, 200))
            response = caller.send(method, path.format(id=f"{session}.{tried}"), body)
            assert response.status in (200, 201), (method, path, response)
            assert msgpack.unpackb(body).keys() == example["value"].keys()
            tried += 1

    assert tried >= 4


def test_document_declares_files_as_bytes(document: Json) -> None:
    found = operations(document)

    response = found["GET", "/sessions/{id}/export"]["responses"]["200"]["content"]
    body = found["POST", "/sessions/{id}/import"]["requestBody"]["content"]

    assert response == body == {OCTETS: {"schema": {"$ref": "#/components/schemas/File"}}}


class References(HTMLParser):
    """Parser that collects the URLs that a page loads, and its inline scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.paths: list[str] = []
        self.inline: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.paths += [path for name in ("src", "href") if (path := given.get(name))]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []


def test_docs_page_loads_from_this_service_only(caller: Caller) -> None:
    page = caller.http.get("/docs")
    references = References(page.text)
    files = {path: caller.http.get(urljoin("/docs", path)) for path in references.paths}
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert references.inline == []
    assert len(files) == 5
    assert not any(urlsplit(path).netloc for path in files)
    assert {path: file.status_code for path, file in files.items()} == dict.fromkeys(files, 200)
    assert {file.headers["content-type"].partition(";")[0] for file in files.values()} == {
        "image/png",
        "text/css",
        "text/javascript",
    }
    assert all(len(file.content) == int(file.headers["content-length"]) for file in files.values())
    assert "://" not in page.text + files["docs/start.js"].text
    assert policy["default-src"] == "'none'"
    assert {source for sources in policy.values() for source in sources.split()} == {"'none'", "'self'", "data:"}
    assert "data:" not in policy["script-src"]


@pytest.mark.parametrize("path", ["/redoc", "/docs/", "/docs/oauth2-redirect", "/docs/redoc.standalone.js"])
def test_docs_has_no_other_pages_or_files(caller: Caller, path: str) -> None:
    assert caller.http.get(path).status_code == 404


def test_docs_files_ignore_ranges_and_support_etags(caller: Caller) -> None:
    path = "/docs/swagger-ui.css"
    whole = caller.http.get(path)
    tag = whole.headers["etag"]

    parts = [caller.http.get(path, headers={"range": part}) for part in ("bytes=abc", "bytes=0-9", "bytes=99999999-")]
    kept = [caller.http.get(path, headers={"if-none-match": tags}) for tags in (tag, f'"a", W/{tag}', "*")]
    other = caller.http.get(path, headers={"if-none-match": '"a", W/"b"'})

    assert [(part.status_code, part.content) for part in (*parts, other)] == [(200, whole.content)] * 4
    assert [(each.status_code, each.content, each.headers["etag"]) for each in kept] == [(304, b"", tag)] * 3
    assert tag != caller.http.get("/docs/favicon.png").headers["etag"]
