"""Addresses, Unix sockets and TLS of both clients."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from hadakv_client import (
    ConnectionLost,
    NotFound,
    Retries,
)
from hadakv_service.testing import running_service

pytestmark = pytest.mark.every_backend


def test_wrong_base_path_raises_not_found(connect: Any, server: Any) -> None:
    client = connect(server.url + "/api/")

    with pytest.raises(NotFound):
        client.session("a").info()
    assert not client.healthy()


def test_unix_socket_works_like_tcp(connect: Any, tmp_path: Path, k: Any, v: Any) -> None:
    path = str(tmp_path / "s")
    command = [sys.executable, "-m", "hadakv_service", "--uds", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        assert path in service.stdout.readline()

        result = connect("http://hadakv", uds=path, retries=Retries(0)).session("a").append(k, v)
        read = connect(f"unix:{path}", retries=Retries(0)).session("a").read()

        service.terminate()
    assert result.length == 5
    assert read.stop == 5


def test_ca_file_replaces_the_default_authorities(connect: Any, tmp_path: Path, k: Any, v: Any) -> None:
    authority, (served, own, other) = trustme.CA(), (tmp_path / name for name in ("served", "own", "other"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(served)
    authority.cert_pem.write_to_path(own)
    trustme.CA().cert_pem.write_to_path(other)

    with running_service("--tls-cert", str(served)) as service:
        result = connect(service.url, ca_file=own).session("a").append(k, v)
        with pytest.raises(ConnectionLost, match=f"at {service.url}: .*CERTIFICATE_VERIFY_FAILED.* with ca_file"):
            connect(service.url, ca_file=str(other), retries=0).session("a").info()
        with pytest.raises(ConnectionLost, match=r"If the service uses TLS, its URL begins with https://"):
            connect(service.url.replace("https", "http"), retries=0).session("a").info()
        with pytest.raises(ConnectionLost, match=r"The certificate does not fit this address"):
            connect(service.url.replace("127.0.0.1", "localhost"), ca_file=own, retries=0).session("a").info()

    assert result.length == 5


def test_https_to_a_service_without_tls_says_so(connect: Any, server: Any) -> None:
    with pytest.raises(ConnectionLost, match=r"The service does not use TLS, .* begins with http://"):
        connect(server.url.replace("http", "https"), retries=0).session("a").info()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_address_without_a_scheme_is_http(connect: Any, server: Any, host: str) -> None:
    assert connect(f"{host}:{server.url.rpartition(':')[2]}", retries=0).healthy()


def test_ca_file_applies_to_tls_over_a_unix_socket(connect: Any, tmp_path: Path, k: Any, v: Any) -> None:
    authority, (served, own, path) = trustme.CA(), (tmp_path / name for name in ("served", "own", "s"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(served)
    authority.cert_pem.write_to_path(own)
    command = [sys.executable, "-m", "hadakv_service", "--uds", str(path), "--tls-cert", str(served)]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert str(path) in service.stdout.readline()
            result = connect("https://localhost", uds=str(path), ca_file=own, retries=0).session("a").append(k, v)
            with pytest.raises(ConnectionLost, match="CERTIFICATE_VERIFY_FAILED"):
                connect("https://localhost", uds=str(path), retries=0).session("a").info()
        finally:
            service.terminate()

    assert result.length == 5


def test_invalid_settings_raise_when_the_client_is_created(connect: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    whole = trustme.CA().cert_pem.bytes()
    (tmp_path / "broken").write_bytes(whole + whole[: len(whole) // 2])

    with pytest.raises(ValueError, match=r"the URL must be like .* not 'unix:/a'"):
        connect("unix:/a", uds="/b")
    with pytest.raises(ValueError, match="empty contains no PEM certificate"):
        connect("https://localhost", ca_file=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"broken contains an invalid certificate: .*PEM lib"):
        connect("https://localhost", ca_file=tmp_path / "broken")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        connect("https://localhost", ca_file="nowhere")
