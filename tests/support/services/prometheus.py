"""Scrapes of `/metrics`, and differences between two scrapes."""

from collections import Counter
from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.contract import Caller

# Value by name and labels. Labels are written as `method=GET route=/metrics`.
Samples = dict[tuple[str, str], float]
# Labels of the samples that a scrape itself changes.
SCRAPE = "method=GET route=/metrics"
# Methods that are used as labels. All others are "other".
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]


def scrape(url: str, token: str | None = None) -> Samples:
    """Return all samples of a service."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    answer = httpx.get(f"{url}/metrics", headers=headers)
    assert answer.status_code == 200, answer
    return samples(answer.text)


def samples(page: str) -> Samples:
    """Parse a page. No sample may occur twice."""
    families = list(text_string_to_metric_families(page))
    found = [((sample.name, labels(sample.labels)), sample.value) for each in families for sample in each.samples]
    assert max(Counter(key for key, _ in found).values()) == 1, page
    assert max(Counter(each.name for each in families).values()) == 1, page
    assert all(each.documentation for each in families), page
    return dict(found)


def metric(caller: Caller, name: str, labels: str = "") -> float:
    """Return the present value of one metric of the service that a caller talks to."""
    return samples(caller.get("/metrics").content.decode())[name, labels]


def labels(of: dict[str, str]) -> str:
    """Return labels in order of their names."""
    return " ".join(f"{name}={of[name]}" for name in sorted(of))


def label_values(found: Samples, label: str) -> set[str]:
    """Return all values of a label."""
    return {part.partition("=")[2] for _, text in found for part in text.split(" ") if part.startswith(f"{label}=")}


def moved(url: str, act: Callable[[], object], token: str | None = None) -> Samples:
    """Return the change of the service's samples during an action, without the samples of the scrape itself."""
    before = scrape(url, token)
    act()
    after = scrape(url, token)
    return {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if value != before.get(key, 0) and key[0].startswith("hadakv_") and not key[1].startswith(SCRAPE)
    }


def counts(of: Samples) -> Samples:
    """Return the samples that must be exact: all but times and sizes."""
    measured = ("_bucket", "seconds_sum", "busy_seconds_total")
    return {key: value for key, value in of.items() if not key[0].endswith(measured)}


def of_http(found: Samples) -> Samples:
    """Return the samples about HTTP requests."""
    return {key: value for key, value in found.items() if key[0].startswith("hadakv_http_")}


def a_call(route: str, method: str, *statuses: int, received: int = 0, sent: int = 0) -> Samples:
    """Return the change expected after requests of one route."""
    call = f"method={method} route={route}"
    added: Samples = {("hadakv_http_request_seconds_count", call): len(statuses)}
    added |= {("hadakv_http_requests_total", f"{call} status={status}"): statuses.count(status) for status in statuses}
    sizes = {"hadakv_http_received_bytes_total": received, "hadakv_http_sent_bytes_total": sent}
    return added | {(name, call): size for name, size in sizes.items() if size}
