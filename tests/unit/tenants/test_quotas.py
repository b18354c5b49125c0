"""What a tenant may have, as it is in force, and how a client is told that it is too little."""

import msgspec
import pytest

from hadakv_client import InsufficientStorage, QuotaExceeded
from hadakv_client.http.problems import problem
from hadakv_service import errors
from hadakv_service.problem_details import problem_response
from hadakv_service.tenants.quotas import Quota, QuotaTable
from support.program import run


def test_a_quota_is_what_is_in_force_at_that_moment() -> None:
    quotas = QuotaTable(Quota(100, 1))
    before = quotas.quota("ann")

    quotas.replace({"ann": Quota(200, 2)})
    meanwhile = quotas.quota("ann"), quotas.quota("bob")
    quotas.replace({"bob": Quota(None, 0)})

    assert before == Quota(100, 1)
    assert meanwhile == (Quota(200, 2), Quota(100, 1))
    assert (quotas.quota("ann"), quotas.quota("bob")) == (Quota(100, 1), Quota(None, 0))


def test_there_is_no_quota_unless_one_is_given() -> None:
    assert QuotaTable().quota("anyone") == Quota(None, None)


def test_what_others_replace_meanwhile_is_not_seen_in_part() -> None:
    own = {"ann": Quota(1)}
    quotas = QuotaTable()
    quotas.replace(own)

    own["ann"] = Quota(2)

    assert quotas.quota("ann") == Quota(1)


@pytest.mark.parametrize("resource", ["bytes", "sessions"])
def test_a_client_is_told_what_it_would_take(resource: str) -> None:
    answer = problem_response(errors.QuotaExceeded(resource, needed=7, quota=5))  # type: ignore[arg-type]

    error = problem(answer.status_code, msgspec.json.decode(bytes(answer.body)))

    assert answer.status_code == 507
    assert isinstance(error, QuotaExceeded)
    assert isinstance(error, InsufficientStorage)
    assert (error.resource, error.needed, error.quota) == (resource, 7, 5)
    assert f"7 {resource}" in error.detail


@pytest.mark.parametrize(("flag", "value"), [("--tenant-quota", "-1"), ("--tenant-sessions", "-1")])
def test_no_quota_is_negative(flag: str, value: str) -> None:
    finished = run(flag, value)

    assert finished.returncode == 1
    assert finished.stderr.startswith(f"hadakv: {flag.strip('-').replace('-', '_')}: ")
