"""Quota table, and the error that a client receives when a quota is exceeded."""

import msgspec
import pytest

from hadakv_client import InsufficientStorage, QuotaExceeded
from hadakv_client.http.problems import problem
from hadakv_service import errors
from hadakv_service.problem_details import problem_response
from hadakv_service.tenants.quotas import Quota, QuotaTable
from support.services.program import run


def test_replaced_quotas_apply_at_once() -> None:
    quotas = QuotaTable(Quota(100, 1))
    before = quotas.quota("ann")

    quotas.replace({"ann": Quota(200, 2)})
    between = quotas.quota("ann"), quotas.quota("bob")
    quotas.replace({"bob": Quota(None, 0)})

    assert before == Quota(100, 1)
    assert between == (Quota(200, 2), Quota(100, 1))
    assert (quotas.quota("ann"), quotas.quota("bob")) == (Quota(100, 1), Quota(None, 0))


def test_default_quota_is_unlimited() -> None:
    assert QuotaTable().quota("anyone") == Quota(None, None)


def test_quota_table_copies_its_mapping() -> None:
    own = {"ann": Quota(1)}
    quotas = QuotaTable()
    quotas.replace(own)

    own["ann"] = Quota(2)

    assert quotas.quota("ann") == Quota(1)


@pytest.mark.parametrize("resource", ["bytes", "sessions"])
def test_client_error_has_resource_needed_and_quota(resource: str) -> None:
    response = problem_response(errors.QuotaExceeded(resource, needed=7, quota=5))  # type: ignore[arg-type]

    error = problem(response.status_code, msgspec.json.decode(bytes(response.body)))

    assert response.status_code == 507
    assert isinstance(error, QuotaExceeded)
    assert isinstance(error, InsufficientStorage)
    assert (error.resource, error.needed, error.quota) == (resource, 7, 5)
    assert f"7 more {resource}" in error.detail


@pytest.mark.parametrize(("flag", "value"), [("--tenant-quota", "-1"), ("--tenant-sessions", "-1")])
def test_negative_quota_flag_is_rejected(flag: str, value: str) -> None:
    finished = run(flag, value)

    assert finished.returncode == 2
    assert finished.stderr.startswith(f"hadakv: {flag}: ")
