"""Token file: tenants of tokens, quotas, and reloading while the service runs."""

import hashlib
import logging
import os
import re
import signal
from pathlib import Path

import pytest

from hadakv_service.errors import Unauthorized
from hadakv_service.tenants.quotas import Quota, QuotaTable
from hadakv_service.tenants.token_file import TokenFile
from hadakv_service.testing import RunningService, running_service
from support.assertions import PACKED, K, V
from support.contract import MSGPACK, Caller, connect, status_line


def line(tenant: str, token: str, *limits: str) -> str:
    return " ".join([f"{tenant}:{hashlib.sha256(token.encode()).hexdigest()}", *limits]) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty token file that only its owner can read."""
    path = tmp_path / "tokens"
    path.touch(0o600)
    return path


MALFORMED = {
    "empty file": "",
    "only comments": "# one\n  # two\n",
    "no digest": "ann\n",
    "token without a hash": "ann:secret\n",
    "short digest": f"ann:{'0' * 63}\n",
    "tenant with a space": f"ann smith:{'0' * 64}\n",
    "unknown limit": line("ann", "one", "colour=red"),
    "limit without a value": line("ann", "one", "quota"),
    "quota that is not a size": line("ann", "one", "quota=much"),
    "negative quota": line("ann", "one", "quota=-1"),
    "fraction of a session": line("ann", "one", "sessions=1.5"),
    "two quotas": line("ann", "one", "quota=1GiB") + line("ann", "two", "quota=2GiB"),
    "one token for two tenants": line("ann", "one") + line("bob", "one"),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_file_is_rejected(path: Path, content: str) -> None:
    path.write_text(content, "utf-8")

    with pytest.raises(ValueError, match=re.escape(str(path))):
        TokenFile(path)


def test_token_identifies_its_tenant(path: Path) -> None:
    path.write_text(
        "# comment\n\n" + line("ann", "one") + "  " + line("bob", "two").upper().replace("BOB", "bob"), "utf-8"
    )
    tokens = TokenFile(path)

    assert (tokens.tenant("Bearer one"), tokens.tenant("bearer two")) == ("ann", "bob")
    digest = hashlib.sha256(b"one").hexdigest()
    for header in ("", "one", "Bearer", "Bearer ", "Basic one", "Bearer three", "Bearer \xff", f"Bearer {digest}"):
        with pytest.raises(Unauthorized):
            tokens.tenant(header)


def test_tenant_may_have_several_tokens(path: Path) -> None:
    path.write_text(line("ann", "one") + line("bob", "two") + line("ann", "three"), "utf-8")

    tokens = TokenFile(path)

    assert [tokens.tenant(f"Bearer {token}") for token in ("one", "two", "three")] == ["ann", "bob", "ann"]


# Quotas


def test_line_without_quota_gets_the_default(path: Path) -> None:
    path.write_text(line("ann", "one"), "utf-8")
    quotas = QuotaTable(Quota(1000, 10))

    TokenFile(path, quotas)

    assert quotas.quota("ann") == quotas.quota("unknown") == quotas.quota("") == Quota(1000, 10)


def test_quota_of_a_line_overrides_the_default(path: Path) -> None:
    path.write_text(
        line("ann", "one", "quota=4GiB", "sessions=1000")
        + line("bob", "two", "sessions=0")
        + line("cat", "three", "quota=none")
        + line("dan", "four", "quota=1MiB")
        + line("dan", "five", "sessions=5")
        + line("dan", "six", "quota=1048576"),
        "utf-8",
    )
    quotas = QuotaTable(Quota(500, 50))

    TokenFile(path, quotas)

    assert quotas.quota("ann") == Quota(4 << 30, 1000)
    assert quotas.quota("bob") == Quota(500, 0)
    assert quotas.quota("cat") == Quota(None, 50)
    assert quotas.quota("dan") == Quota(1 << 20, 5)


# Reload


def test_reload_replaces_tokens_and_quotas(path: Path) -> None:
    path.write_text(line("ann", "one", "quota=1") + line("bob", "two", "quota=2"), "utf-8")
    quotas = QuotaTable()
    tokens = TokenFile(path, quotas)

    path.write_text(line("ann", "new") + line("bob", "two", "quota=3"), "utf-8")
    tokens.reload()

    assert (tokens.tenant("Bearer new"), tokens.tenant("Bearer two")) == ("ann", "bob")
    with pytest.raises(Unauthorized):
        tokens.tenant("Bearer one")
    assert (quotas.quota("ann"), quotas.quota("bob")) == (Quota(), Quota(3))


@pytest.mark.parametrize("content", ["", "ann:nonsense\n", line("ann", "new") + "bob\n", None])
def test_failed_reload_keeps_the_previous_tokens(
    path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(line("ann", "one", "sessions=1"), "utf-8")
    quotas = QuotaTable()
    tokens = TokenFile(path, quotas)
    if content is None:
        path.unlink()
    else:
        path.write_text(content, "utf-8")

    tokens.reload()

    assert (tokens.tenant("Bearer one"), quotas.quota("ann")) == ("ann", Quota(None, 1))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(path) in record.getMessage()


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o602, True)]
)
def test_file_accessible_to_others_logs_a_warning(
    path: Path, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(line("ann", "one"), "utf-8")
    path.chmod(mode)

    TokenFile(path)

    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warned


# SIGHUP


def reload(service: RunningService, log: Path, message: str) -> None:
    """Send SIGHUP and wait until the log has another occurrence of the message."""
    before = log.read_text("utf-8").count(message)
    service.process.send_signal(signal.SIGHUP)
    for _ in range(100_000):
        if log.read_text("utf-8").count(message) > before:
            return
        os.sched_yield()
    raise AssertionError(f"the log never had {message!r}")


def test_sighup_reloads_without_failing_requests(path: Path, tmp_path: Path) -> None:
    path.write_text(line("ann", "one"), "utf-8")
    log = tmp_path / "log"
    head = (
        f"POST /sessions/a/kv HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer one\r\nContent-Type: {MSGPACK}\r\n"
    )

    with (
        log.open("w") as stderr,
        running_service("--token-file", str(path), log=stderr) as service,
        connect(service.url) as in_progress,
        Caller(service.url, "one") as ann,
        Caller(service.url, "two") as bob,
    ):
        in_progress.sendall(f"{head}Content-Length: {len(PACKED)}\r\n\r\n".encode() + PACKED[:100])
        before = [ann.get("/sessions").status, bob.get("/sessions").status]
        path.write_text(line("bob", "two"), "utf-8")
        reload(service, log, "reloaded: ")
        after = [ann.get("/sessions").status, bob.get("/sessions").status]
        in_progress.sendall(PACKED[100:])
        response_line = status_line(in_progress)
        path.write_text("nonsense", "utf-8")
        reload(service, log, "still in use")
        after_failure = [ann.get("/sessions").status, bob.append("b", K, V).status]

    assert before == [200, 401]
    assert after == [401, 200]
    assert response_line == b"HTTP/1.1 201 Created"
    assert after_failure == [401, 201]
    assert service.process.returncode == 0
