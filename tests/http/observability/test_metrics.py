"""`/metrics`: gauges of stored sessions, access, formats, and a bounded number of labels."""

import hashlib
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import httpx
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics

from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.http.routes import docs
from hadakv_service.maintenance import MAINTENANCE_SECONDS
from hadakv_service.observability.counters import DeviceCounters, RequestCounters
from hadakv_service.observability.prometheus import Metrics, MetricSources, RusageCollector
from hadakv_service.observability.tier_gauges import MemoryTierGauges
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.testing import RunningService, running_service
from hadakv_service.wire.sending_budget import SendingBudget
from support.assertions import K, V
from support.contract import Caller
from support.inputs.arrays import pair
from support.polling import eventually
from support.services.blocked_device import HELD
from support.services.prometheus import METHODS, Samples, label_values, moved, samples, scrape

KV = "/sessions/{id}/kv"
TABLE = Path(__file__).parents[3] / "docs" / "running.md"

# Stored sessions


def test_memory_gauges_match_readyz(asking: Caller, watched: RunningService, session: str) -> None:
    asking.append(session, K, V)
    ready, found = asking.get("/readyz").body, scrape(watched.url)

    assert found["hadakv_tier_budget_bytes", "tier=memory"] == ready["budget_nbytes"] == 1 << 30
    assert found["hadakv_tier_stored_bytes", "tier=memory"] == ready["used_nbytes"]
    assert found["hadakv_tier_sessions", "tier=memory"] == ready["sessions"]
    assert found["hadakv_reserved_bytes", ""] == 0
    for name in ("spills", "restores", "failures"):
        assert found[f"hadakv_tier_{name}_total", "tier=memory"] == 0


def test_every_tier_has_gauges() -> None:
    figures = {"budget": 1 << 40, "used": 77, "sessions": 5, "spills": 9, "restores": 4, "failures": 1}
    figures |= {"read_nbytes": 300, "written_nbytes": 500}
    disk = SimpleNamespace(name="disk", **figures)
    device, store = DeviceExecutor(CpuBackend(1), 1), SessionStore(1 << 20)

    page, _ = Metrics(
        MetricSources(
            RequestCounters(), DeviceCounters(), device, store, [MemoryTierGauges(store), disk], SendingBudget(1)
        )
    ).render("")
    found = samples(page.decode())

    names = {"budget": "budget_bytes", "used": "stored_bytes", "sessions": "sessions"}
    names |= {name: f"{name}_total" for name in ("spills", "restores", "failures")}
    names |= {"read_nbytes": "read_bytes_total", "written_nbytes": "written_bytes_total"}
    for figure, value in figures.items():
        assert found[f"hadakv_tier_{names[figure]}", "tier=disk"] == value
    assert found["hadakv_tier_budget_bytes", "tier=memory"] == 1 << 20


def test_evicted_sessions_are_counted() -> None:
    with running_service("--memory-budget", "1MiB") as service, Caller(service.url) as caller:
        for n in range(30):
            assert caller.append(f"{n}", *pair(1, 2, 600, 64)).status == 201
        found, listed = scrape(service.url), caller.get("/sessions").body["sessions"]

    assert 0 < len(listed) < 30
    assert found["hadakv_evictions_total", ""] == 30 - len(listed)
    assert found["hadakv_tier_sessions", "tier=memory"] == len(listed)
    assert found["hadakv_tier_stored_bytes", "tier=memory"] <= 1 << 20


def test_reserved_gauge_is_set_during_an_append(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    with running_service("--backend", "cpu", program=("-c", HELD, str(gate))) as service, Caller(service.url) as caller:
        appending = threading.Thread(target=caller.append, args=("a", K, V))
        appending.start()
        eventually(lambda: scrape(service.url)["hadakv_reserved_bytes", ""] > 0)
        held = scrape(service.url)
        gate.write_bytes(b"go on")
        appending.join()
        found = scrape(service.url)

    assert held["hadakv_tier_stored_bytes", "tier=memory"] == 0
    assert found["hadakv_reserved_bytes", ""] == 0
    assert found["hadakv_tier_stored_bytes", "tier=memory"] == held["hadakv_reserved_bytes", ""]


# Access and formats


def test_backend_and_process_have_metrics(watched: RunningService, asking: Caller) -> None:
    ready, found = asking.get("/readyz").body, scrape(watched.url)

    labels = f"backend={ready['backend']} detail={ready['detail']} version={ready['version']}"
    assert found["hadakv_info", labels] == 1
    assert found["process_cpu_seconds_total", ""] > 0
    assert any(name == "python_info" for name, _ in found)


def test_process_metrics_without_proc() -> None:
    registry = CollectorRegistry()
    registry.register(RusageCollector())

    found = samples(generate_latest(registry).decode())

    assert found["process_cpu_seconds_total", ""] > 0
    assert found["process_resident_memory_peak_bytes", ""] > 1 << 20
    assert found["process_start_time_seconds", ""] > 1.7e9


def test_accept_header_selects_openmetrics(watched: RunningService) -> None:
    accept = "application/openmetrics-text; version=1.0.0"

    response = httpx.get(f"{watched.url}/metrics", headers={"accept": accept})
    plain = httpx.get(f"{watched.url}/metrics")

    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert "hadakv_http_requests" in {family.name for family in open_metrics(response.text)}
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_metrics_need_a_token_and_name_no_tenant_or_session(tmp_path: Path, session: str) -> None:
    path = tmp_path / "tokens"
    digests = [f"{name}:{hashlib.sha256(f'token-of-{name}'.encode()).hexdigest()}" for name in ("ann", "prometheus")]
    path.write_text("\n".join(digests), "utf-8")

    with running_service("--token-file", str(path)) as service, Caller(service.url, "token-of-ann") as ann:
        ann.append(session, K, V)
        stranger = httpx.get(f"{service.url}/metrics")
        found = scrape(service.url, "token-of-prometheus")
        page = httpx.get(f"{service.url}/metrics", headers={"authorization": "Bearer token-of-prometheus"}).text

    assert stranger.status_code == 401
    assert found["hadakv_tier_sessions", "tier=memory"] == 1
    assert found["hadakv_http_requests_total", "method=GET route=/metrics status=401"] == 1
    assert session not in page
    assert "ann" not in page
    assert "prometheus" not in page


@examples(max_examples=60)
@given(
    st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S"), exclude_characters="#?"), max_size=30),
    st.sampled_from(["GET", "POST", "DELETE", "PURGE", "M-SEARCH", "LOCK"]),
)
def test_random_paths_and_methods_add_no_labels(asking: Caller, path: str, method: str) -> None:
    for prefix in ("/", "/sessions/", "/sessions/a/"):
        asking.send(method, prefix + path)


def test_documented_metrics_match_types_and_labels(asking: Caller, watched: RunningService) -> None:
    asking.append(uuid4().hex, K, V)
    asking.get("/nothing")
    families = text_metrics(httpx.get(f"{watched.url}/metrics").text)
    documented = {
        name.removesuffix("_total"): (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(r"^\| `(hadakv_\w+)` \| (\w+) \|(.*?)\|", TABLE.read_text("utf-8"), re.M)
    }

    assert documented == {
        family.name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for family in families
        if family.name.startswith("hadakv_")
    }


def test_labels_are_limited_to_the_routes(asking: Caller, watched: RunningService) -> None:
    for _ in range(100):
        asking.send("GET", f"/{uuid4()}")
        asking.send("DELETE", f"/sessions/{uuid4()}")
    found = scrape(watched.url)

    paths = set(asking.get("/openapi.json").body["paths"])
    more = {"other", "unreadable", "/openapi.json", *(route.path for route in docs.ROUTES)}
    assert label_values(found, "route") <= paths | more
    assert label_values(found, "method") <= {*METHODS, "other"}
    assert label_values(found, "tier") == {"memory"}
    assert all(re.fullmatch(r"[1-5]\d\d", status) for status in label_values(found, "status"))


def test_concurrent_scrapes_never_see_a_counter_decrease(watched: RunningService) -> None:
    def scrape_repeatedly(_: int) -> list[Samples]:
        return [scrape(watched.url) for _ in range(10)]

    def append(name: str) -> None:
        with Caller(watched.url) as caller:
            for _ in range(50):
                assert caller.append(name, K, V).status in (200, 201)

    def act() -> list[list[Samples]]:
        with ThreadPoolExecutor(8) as pool:
            appending = [pool.submit(append, uuid4().hex) for _ in range(3)]
            seen = list(pool.map(scrape_repeatedly, range(5)))
            for each in appending:
                each.result()
        return seen

    seen: list[list[Samples]] = []
    start = time.monotonic()
    found = moved(watched.url, lambda: seen.extend(act()))
    # Periodic maintenance also runs on the device.
    maintenance_jobs = 1 + (time.monotonic() - start) // MAINTENANCE_SECONDS

    assert found["hadakv_http_request_seconds_count", f"method=POST route={KV}"] == 150
    assert 150 <= found["hadakv_device_job_seconds_count", ""] <= 150 + maintenance_jobs
    for mine in seen:
        for before, after in pairwise(mine):
            decreased = [
                key for key, value in before.items() if key[0].endswith(("_total", "_count")) and after[key] < value
            ]
            assert decreased == []
