"""Host, Origin and Sec-Fetch-Site checks: requests of other sites' pages are rejected, those of programs are not."""

from collections.abc import Iterator

import httpx
import pytest

from hadakv_service.http.middleware.host_origin import is_known
from hadakv_service.testing import RunningService, running_service
from support.assertions import PACKED, K, V
from support.contract import MSGPACK, Caller, connect, status_line

KNOWN = [
    "localhost",
    "LOCALHOST:8765",
    "localhost.",
    "127.0.0.1",
    "127.0.0.1:1",
    "[::1]",
    "[::1]:8765",
    "10.1.2.3:80",
    "box",
]
UNKNOWN = [
    "",
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.1",
    "0x7f000001",
    "::1",
    "[::1",
    "box:a",
]
UNKNOWN += ["a@localhost", "localhost/", "localhost localhost", "box.evil.example", "localhost:80:80", "[evil]", "\xe9"]


@pytest.mark.parametrize(("host", "known"), [(host, True) for host in KNOWN] + [(host, False) for host in UNKNOWN])
def test_known_hosts_are_addresses_and_own_names(host: str, known: bool) -> None:
    assert is_known(host.encode("latin-1"), {"localhost", "box"}) == known


@pytest.fixture(scope="module")
def named() -> Iterator[RunningService]:
    """A service with additional Host names and one allowed origin."""
    flags = ("--allowed-hosts", "box.example,other.example", "--allowed-origins", "http://app.example:3000")
    with running_service(*flags) as service:
        yield service


def raw(service: RunningService, *lines: str, version: str = "1.1") -> bytes:
    """Return the status line of the response to `GET /sessions` with these headers."""
    with connect(service.url) as connection:
        connection.sendall("\r\n".join([f"GET /sessions HTTP/{version}", *lines, "", ""]).encode())
        return status_line(connection)


# Host


@pytest.mark.parametrize("host", ["evil.example", "box.example.evil.example", "evil.example:8765"])
@pytest.mark.parametrize("path", ["/sessions", "/healthz", "/docs", "/nowhere"])
def test_request_for_an_unknown_host_is_rejected(named: RunningService, host: str, path: str) -> None:
    with Caller(named.url) as caller:
        response = caller.send("GET", path, host=host)

    assert response.problem(421, "unknown-host")["host"] == host


def test_append_for_an_unknown_host_stores_nothing(server: RunningService, session: str) -> None:
    with Caller(server.url) as caller:
        responses = (
            caller.append(session, K, V),
            caller.send("POST", f"/sessions/{session}/kv", PACKED, host="evil.example"),
        )

        assert responses[0].status == 201
        responses[1].problem(421, "unknown-host")
        assert caller.info(session)["length"] == K.shape[2]


@pytest.mark.parametrize("host", ["box.example", "Other.Example:99", "localhost", "192.168.7.7:8765", "[fe80::1]"])
def test_request_for_an_allowed_host_is_accepted(named: RunningService, host: str) -> None:
    assert raw(named, f"Host: {host}") == b"HTTP/1.1 200 OK"


def test_missing_or_repeated_host_is_rejected(server: RunningService) -> None:
    assert raw(server).startswith(b"HTTP/1.1 421 ")
    assert raw(server, version="1.0").startswith(b"HTTP/1.1 421 ")
    assert raw(server, "Host: localhost", "Host: evil.example").startswith(b"HTTP/1.1 400 ")
    assert raw(server, "Host: localhost", "Host: localhost").startswith(b"HTTP/1.1 400 ")


def test_wildcard_allows_any_host() -> None:
    with running_service("--allowed-hosts", "*") as service:
        assert raw(service, "Host: whatever.example") == b"HTTP/1.1 200 OK"
        assert raw(service, "Host: whatever.example", "Origin: http://evil.example").startswith(b"HTTP/1.1 403 ")


# Origin

OTHER_ORIGINS = [
    "http://evil.example",
    "null",
    "https://localhost",
    "http://localhost:1",
    "http://app.example",
    "file://",
]


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_request_of_another_origin_is_rejected(named: RunningService, origin: str, session: str) -> None:
    with Caller(named.url) as caller:
        response = caller.send("POST", f"/sessions/{session}/kv", PACKED, origin=origin)

        response.problem(403, "forbidden-origin")
        assert caller.get(f"/sessions/{session}").status == 404


def test_same_origin_request_is_accepted(server: RunningService, session: str) -> None:
    with Caller(server.url) as caller:
        headers = {"origin": server.url, "sec-fetch-site": "same-origin"}

        assert caller.send("POST", f"/sessions/{session}/kv", PACKED, **headers).status == 201
        assert raw(server, "Host: box", "Origin: http://box").startswith(b"HTTP/1.1 421 ")
        assert raw(server, "Host: LocalHost:1", "Origin: http://localhost:1") == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_request_without_origin_is_checked_by_fetch_site(server: RunningService, site: str, status: int) -> None:
    with Caller(server.url) as caller:
        responses = [
            caller.http.get(path, headers={"sec-fetch-site": site}) for path in ("/docs", "/sessions", "/openapi.json")
        ]

    assert [response.status_code for response in responses] == [status] * 3


def test_documentation_works_in_a_browser(server: RunningService, session: str) -> None:
    """Send the requests of a browser: the page, its script, the OpenAPI document, and a call from the page."""
    with httpx.Client(base_url=server.url) as browser:
        page = browser.get("/docs", headers={"sec-fetch-site": "none", "sec-fetch-mode": "navigate"})
        script = browser.get("/docs/start.js", headers={"sec-fetch-site": "same-origin"})
        document = browser.get(
            "/openapi.json", headers={"sec-fetch-site": "same-origin", "referer": f"{server.url}/docs"}
        )
        own = {"origin": server.url, "sec-fetch-site": "same-origin", "content-type": "application/json"}
        tried = browser.put(f"/sessions/{session}", content=b"{}", headers=own)

    assert (page.status_code, document.status_code, tried.status_code) == (200, 200, 201)
    assert "docs/start.js" in page.text
    assert "openapi.json" in script.text


# Allowed origins

ALLOWED = {"origin": "http://app.example:3000", "sec-fetch-site": "cross-site"}


def test_allowed_origin_passes_preflight_and_reads_responses(named: RunningService, session: str) -> None:
    wanted = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with httpx.Client(base_url=named.url, headers=ALLOWED) as page:
        preflight = page.options(f"/sessions/{session}/kv", headers=wanted)
        append = page.post(f"/sessions/{session}/kv", content=PACKED, headers={"content-type": MSGPACK})
        read = page.get(f"/sessions/{session}/kv")
        missing = page.get("/sessions/none")

    assert preflight.status_code == 200
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert [append.status_code, read.status_code, missing.status_code] == [201, 200, 404]
    for response in (preflight, append, read, missing):
        assert response.headers["access-control-allow-origin"] == ALLOWED["origin"]


def test_cross_site_request_without_origin_is_rejected(named: RunningService) -> None:
    assert httpx.get(f"{named.url}/sessions", headers={"sec-fetch-site": "cross-site"}).status_code == 403
