"""TLS: certificates and keys, the Python client over https, and bodies received straight into a buffer."""

import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import msgpack
import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from hadakv_client import Client, ConnectionLost
from hadakv_service.server.tls import tls_context
from hadakv_service.settings import Settings
from hadakv_service.testing import RunningService, running_service
from support.contract import MSGPACK, append_body
from support.services.program import run

LARGE = np.random.default_rng(6).standard_normal((4, 8, 1024, 128)).astype(np.float16)
BODY: bytes = msgpack.packb(append_body(LARGE[:, :, :300], LARGE[:, :, :300]))
SMALL: bytes = msgpack.packb(append_body(LARGE[:, :, :1], LARGE[:, :, :1]))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make the authority that signs the service's certificate."""
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Make a client's TLS context that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a certificate and its key: apart, together, and the key encrypted."""
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    key = issued.private_key_pem.bytes()
    loaded = load_pem_private_key(key, None)
    secret = loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
    contents = {"cert": chain, "key": key, "both": key + chain, "secret": secret, "password": b"open sesame\n"}
    contents |= {
        "wrong": b"open barley\n",
        "noise": b"\xff\x00",
        "authority": authority.cert_pem.bytes(),
        "other": authority.issue_cert("localhost").private_key_pem.bytes(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def secure(files: Path) -> Iterator[RunningService]:
    """Run a service with TLS."""
    with running_service("--tls-cert", str(files / "cert"), "--tls-key", str(files / "key")) as service:
        yield service


@contextmanager
def connected(service: RunningService, trusting: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Yield a TLS connection."""
    address = urlsplit(service.url)
    with (
        socket.create_connection((address.hostname, address.port), timeout=60) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def request(session: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST /sessions/{session}/kv HTTP/1.1", "Host: localhost", f"Content-Type: {MSGPACK}"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *more, "", ""]).encode() + body


def test_startup_line_shows_https(secure: RunningService) -> None:
    assert re.search(r", https://127\.0\.0\.1:\d+, ", secure.startup_line)


def test_client_works_over_https(secure: RunningService, files: Path) -> None:
    with Client(secure.url, ca_file=files / "authority") as client:
        session = client.session(uuid4().hex, codec={"kind": "float16"})
        session.append(LARGE, -LARGE)
        session.append(LARGE[:, :, :1], LARGE[:, :, :1])
        cache = session.read(form="float16")

    assert np.array_equal(cache.k, np.concatenate([LARGE, LARGE[:, :, :1]], axis=2))
    assert np.array_equal(cache.v, np.concatenate([-LARGE, LARGE[:, :, :1]], axis=2))


def test_client_reports_an_untrusted_certificate(secure: RunningService) -> None:
    with Client(secure.url, retries=0) as client, pytest.raises(ConnectionLost, match="CERTIFICATE_VERIFY_FAILED"):
        client.session("a").info()


@pytest.mark.parametrize("pace", [10_000, 1 << 30], ids=["in pieces", "at once"])
def test_pipelined_bodies_are_received(secure: RunningService, trusting: ssl.SSLContext, pace: int) -> None:
    session = uuid4().hex
    bodies = [BODY, SMALL, BODY, BODY, SMALL]
    sent = b"".join(request(session, body) for body in bodies[:-1]) + request(session, SMALL, "Connection: close")

    with connected(secure, trusting) as connection, connection.makefile("rb") as stream:
        for start in range(0, len(sent), pace):
            connection.sendall(sent[start : start + pace])
        received = stream.read()

    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"201", b"200", b"200", b"200", b"200"]
    assert httpx.get(f"{secure.url}/sessions/{session}", verify=trusting).json()["length"] == 902


@pytest.mark.parametrize("sent", [100, 100_000, len(BODY) - 1])
def test_incomplete_body_stores_nothing(secure: RunningService, trusting: ssl.SSLContext, sent: int) -> None:
    session = uuid4().hex
    whole = request(session, BODY)

    with connected(secure, trusting) as connection:
        connection.sendall(whole[: len(whole) - len(BODY) + sent])

    assert httpx.get(f"{secure.url}/sessions/{session}", verify=trusting).status_code == 404
    assert httpx.get(f"{secure.url}/readyz", verify=trusting).status_code == 200


def test_client_that_expects_100_continue_gets_it(secure: RunningService, trusting: ssl.SSLContext) -> None:
    whole = request(uuid4().hex, BODY, "Expect: 100-continue", "Connection: close")
    with connected(secure, trusting) as connection, connection.makefile("rb") as stream:
        connection.sendall(whole[: -len(BODY)])
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        connection.sendall(BODY)

        assert re.findall(rb"HTTP/1\.1 (\d+)", stream.read()) == [b"201"]


def test_own_origin_is_https(secure: RunningService, trusting: ssl.SSLContext) -> None:
    with httpx.Client(base_url=secure.url, verify=trusting) as browser:
        own = browser.get("/sessions", headers={"origin": secure.url}).status_code
        plain = browser.get("/sessions", headers={"origin": secure.url.replace("https", "http")}).status_code

    assert (own, plain) == (200, 403)


def test_plain_http_is_disconnected(secure: RunningService, trusting: ssl.SSLContext) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(secure.url.replace("https", "http") + "/healthz")

    assert httpx.get(f"{secure.url}/healthz", verify=trusting).status_code == 200


def test_missing_tls_handshake_is_disconnected(files: Path) -> None:
    both = str(files / "both")
    with running_service("--tls-cert", both, "--header-timeout", "0.5") as service:
        address = urlsplit(service.url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as silent:
            assert silent.recv(1) == b""


@pytest.mark.hadakv_protocol
def test_stalled_body_gets_408(files: Path, trusting: ssl.SSLContext) -> None:
    flags = ("--tls-cert", str(files / "both"), "--stall-timeout", "0.5")
    with running_service(*flags) as service, connected(service, trusting) as connection:
        connection.sendall(request("slow", BODY)[:100_000])
        with connection.makefile("rb") as stream:
            assert stream.readline() == b"HTTP/1.1 408 Request Timeout\r\n"


# Certificates and keys


@pytest.mark.parametrize("flags", [("both",), ("cert", "secret", "password"), ("both", "key")])
def test_key_may_be_in_the_same_file_or_encrypted(
    files: Path, trusting: ssl.SSLContext, flags: tuple[str, ...]
) -> None:
    names = ("--tls-cert", "--tls-key", "--tls-key-password-file")
    given = [word for name, file in zip(names, flags, strict=False) for word in (name, str(files / file))]
    with running_service(*given) as service:
        assert httpx.get(f"{service.url}/healthz", verify=trusting).status_code == 200


def test_pipe_and_comment_in_latin_1_are_accepted(files: Path, trusting: ssl.SSLContext, tmp_path: Path) -> None:
    commented = tmp_path / "commented"
    commented.write_bytes("Jérôme's\n".encode("latin-1") + (files / "cert").read_bytes())
    key, writing = os.pipe()
    os.write(writing, (files / "key").read_bytes())
    os.close(writing)

    context = tls_context(Settings(tls_cert=commented, tls_key=Path(f"/dev/fd/{key}")))
    os.close(key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = trusting.wrap_bio(back, there, server_hostname="localhost")
    service = context.wrap_bio(there, back, server_side=True)
    for side in (caller, service, caller, service):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()

    assert caller.getpeercert()
    assert service.version() == "TLSv1.3"


BAD = {
    "no certificate": (("nothing", "key"), "cannot read .*nothing: No such file or directory"),
    "missing key": (("cert", "nothing"), "cannot read .*nothing: No such file or directory"),
    "no key": (("cert",), "cannot use .*cert: .*cert must contain its key, both in PEM .*"),
    "another key": (("cert", "other"), "cannot use .*cert: the key in .*other does not belong to the certificate"),
    "no password": (
        ("cert", "secret"),
        "cannot use .*cert: the key in .*secret is encrypted; pass its password with --tls-key-password-file",
    ),
    "a wrong password": (
        ("cert", "secret", "wrong"),
        "cannot use .*cert: the password in .*wrong does not decrypt the key in .*secret",
    ),
    "missing password file": (("cert", "secret", "nothing"), "cannot read .*nothing: No such file.*"),
    "another file": (("password", "key"), "cannot use .*: .*password must begin with a certificate .*"),
    "certificate not text": (("noise", "key"), "cannot use .*: .*noise must begin with a certificate .*"),
    "password not text": (("cert", "secret", "noise"), "cannot read .*noise: not UTF-8 text"),
    "a folder": (("", "key"), "cannot read .*: Is a directory"),
    "a folder for a key": (("cert", ""), "cannot read .*: Is a directory"),
}


@pytest.mark.parametrize(("flags", "reason"), BAD.values(), ids=BAD)
def test_unusable_certificate_is_explained_in_one_line(files: Path, flags: tuple[str, ...], reason: str) -> None:
    names = ("--tls-cert", "--tls-key", "--tls-key-password-file")
    given = [word for name, file in zip(names, flags, strict=False) for word in (name, str(files / file))]

    finished = run("--port", "0", *given)

    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.fullmatch(f"hadakv: {reason}\n", finished.stderr), finished.stderr


def test_tls_beyond_loopback_needs_a_token(files: Path) -> None:
    finished = run("--host", "0.0.0.0", "--tls-cert", str(files / "both"))

    assert "refusing to bind 0.0.0.0 without tokens" in finished.stderr
