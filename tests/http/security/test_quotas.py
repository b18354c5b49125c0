"""Quotas of tenants: bytes and sessions, in memory and on disk."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hadakv_kernels import Codec
from hadakv_service.testing import running_service
from support.contract import Caller
from support.inputs.arrays import pair, row_nbytes

K, V = pair(1, 1, 10)
TOKENS = {"ann": "a" * 20, "bob": "b" * 20}
NBYTES = 10 * 2 * row_nbytes(Codec(), 64)


def token_file(folder: Path, quota: str) -> str:
    """Write a token file with a quota for Ann and none for Bob, and return its path."""
    digests = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in TOKENS.items()}
    path = folder / "tokens"
    path.write_text(f"ann:{digests['ann']} {quota}\nbob:{digests['bob']}\n")
    path.chmod(0o600)
    return str(path)


@contextmanager
def tenants(folder: Path, quota: str, *flags: str) -> Iterator[tuple[Caller, Caller]]:
    """Start a service, and yield the clients of Ann and Bob."""
    with (
        running_service("--token-file", token_file(folder, quota), *flags) as service,
        Caller(service.url, TOKENS["ann"]) as ann,
        Caller(service.url, TOKENS["bob"]) as bob,
    ):
        yield ann, bob


def test_sessions_above_the_quota_are_rejected(tmp_path: Path) -> None:
    with tenants(tmp_path, "sessions=2") as (ann, bob):
        assert ann.append("1", K, V).status == 201
        assert ann.put("/sessions/2", {}).status == 201
        for response in (ann.append("3", K, V), ann.put("/sessions/3", {}), ann.post("/sessions/1/fork", {"id": "3"})):
            problem = response.problem(507, "quota-exceeded")
            assert (problem["resource"], problem["quota"]) == ("sessions", 2)
        assert ann.append("1", K, V).status == 200
        assert [bob.append(str(i), K, V).status for i in range(4)] == [201] * 4
        assert ann.delete("/sessions/2").status == 204
        assert ann.append("3", K, V).status == 201


def test_bytes_above_the_quota_are_rejected(tmp_path: Path) -> None:
    with tenants(tmp_path, f"quota={2 * NBYTES}") as (ann, _):
        assert ann.append("1", K, V).status == 201
        assert ann.append("2", K, V).status == 201
        problem = ann.append("1", K[:, :, :1], V[:, :, :1]).problem(507, "quota-exceeded")
        assert (problem["resource"], problem["quota"]) == ("bytes", 2 * NBYTES)
        assert ann.info("1")["length"] == 10
        assert ann.post("/sessions/2/truncate", {"length": 9}).status == 200
        assert ann.append("1", K[:, :, :1], V[:, :, :1]).status == 200
        ann.append("1", K[:, :, :1], V[:, :, :1]).problem(507, "quota-exceeded")


def test_sessions_on_disk_count_towards_the_quota(tmp_path: Path) -> None:
    quota = f"quota={2 * NBYTES} sessions=2"
    disk = ("--data-dir", str(tmp_path / "data"), "--disk-budget", "1GiB")
    with tenants(tmp_path, quota, *disk) as (ann, _):
        ann.append("1", K, V)

    with tenants(tmp_path, quota, *disk) as (ann, _):
        ann.append("2", np.concatenate([K, K], 2), np.concatenate([V, V], 2)).problem(507, "quota-exceeded")
        assert ann.append("2", K, V).status == 201
        ann.put("/sessions/3", {}).problem(507, "quota-exceeded")
        assert ann.delete("/sessions/1").status == 204
        assert ann.put("/sessions/3", {}).status == 201


def test_default_quota_applies_without_an_own_quota(tmp_path: Path) -> None:
    with tenants(tmp_path, "sessions=5", "--tenant-sessions", "1") as (ann, bob):
        assert bob.append("1", K, V).status == 201
        bob.append("2", K, V).problem(507, "quota-exceeded")
        assert [ann.append(str(i), K, V).status for i in range(2)] == [201, 201]
