"""Requests that a browser sends for a web page of an attacker."""

from attacks.attack import BODY, SECRET, Outcome, Target, append_head, attack, described, head, statuses

EVIL = "http://evil.example"


@attack("rebinding Host")
def rebinding(target: Target) -> Outcome:
    hosts = ["evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example", "x@localhost", ""]
    received = [target.exchange(head("GET", f"/sessions/{SECRET}/kv", tenant="alice", host=host)) for host in hosts]

    return Outcome("evil.example, localhost.evil.example, ...", described(*received), set(statuses(*received)) == {421})


@attack("two Hosts")
def two_hosts(target: Target) -> Outcome:
    received = target.exchange(head("GET", f"/sessions/{SECRET}", "Host: evil.example", tenant="alice"))

    return Outcome("localhost and evil.example", described(received), statuses(received) == [400])


@attack("cross-origin Origin")
def cross_origin(target: Target) -> Outcome:
    origins = [EVIL, "null", "http://localhost:1", "https://localhost", "http://localhost.evil.example", "file://"]
    received = [
        target.exchange(append_head("page", len(BODY), f"Origin: {origin}", tenant="alice") + BODY)
        for origin in origins
    ]

    return Outcome("evil.example, null, another port, ...", described(*received), set(statuses(*received)) == {403})


@attack("cross-site request without Origin")
def cross_site(target: Target) -> Outcome:
    received = [
        target.exchange(head("GET", f"/sessions/{SECRET}/kv", f"Sec-Fetch-Site: {site}", tenant="alice"))
        for site in ("cross-site", "same-site")
    ]

    return Outcome("Sec-Fetch-Site: cross-site, same-site", described(*received), set(statuses(*received)) == {403})


@attack("preflight of another site")
def preflight(target: Target) -> Outcome:
    asked = ("Access-Control-Request-Method: DELETE", "Access-Control-Request-Headers: authorization")
    received = target.exchange(head("OPTIONS", f"/sessions/{SECRET}", f"Origin: {EVIL}", *asked, tenant=None))
    held = statuses(received) == [403] and b"access-control-allow" not in received.lower()

    return Outcome("OPTIONS for a DELETE", described(received), held)


@attack("form of another site")
def form(target: Target) -> Outcome:
    body = b"k=v"
    lines = (f"Origin: {EVIL}", "Content-Type: text/plain", f"Content-Length: {len(body)}")
    received = target.exchange(head("POST", f"/sessions/{SECRET}/truncate", *lines, tenant="alice") + body)

    return Outcome("POST that needs no preflight", described(received), statuses(received) == [403])
