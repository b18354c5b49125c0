"""Reading `/metrics` as Prometheus does, and comparing two readings."""

from collections import Counter
from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

# A sample's name and labels, the latter as `method=GET route=/metrics`, and its value.
Samples = dict[tuple[str, str], float]
# What a scrape itself adds to the next one.
SCRAPE = "method=GET route=/metrics"
# Methods that labels name; any other is "other".
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]


def scrape(url: str, token: str | None = None) -> Samples:
    """All samples there are."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    answer = httpx.get(f"{url}/metrics", headers=headers)
    assert answer.status_code == 200, answer
    return samples(answer.text)


def samples(page: str) -> Samples:
    """The samples of a page, which must not tell one twice."""
    families = list(text_string_to_metric_families(page))
    found = [((sample.name, labels(sample.labels)), sample.value) for each in families for sample in each.samples]
    assert max(Counter(key for key, _ in found).values()) == 1, page
    assert max(Counter(each.name for each in families).values()) == 1, page
    assert all(each.documentation for each in families), page
    return dict(found)


def labels(of: dict[str, str]) -> str:
    """Labels in order of their names."""
    return " ".join(f"{name}={of[name]}" for name in sorted(of))


def label_values(found: Samples, label: str) -> set[str]:
    """Every value that a label has somewhere."""
    return {part.partition("=")[2] for _, text in found for part in text.split(" ") if part.startswith(f"{label}=")}


def moved(url: str, act: Callable[[], object], token: str | None = None) -> Samples:
    """What the service's own counters, counts and gauges rose by while something was done, without the scrape's own."""
    before = scrape(url, token)
    act()
    after = scrape(url, token)
    return {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if value != before.get(key, 0) and key[0].startswith("hadakv_") and not key[1].startswith(SCRAPE)
    }


def counts(of: Samples) -> Samples:
    """Without times and sizes: what must be exact whatever the machine does."""
    measured = ("_bucket", "seconds_sum", "busy_seconds_total")
    return {key: value for key, value in of.items() if not key[0].endswith(measured)}


def of_http(found: Samples) -> Samples:
    """Those of requests."""
    return {key: value for key, value in found.items() if key[0].startswith("hadakv_http_")}


def a_call(route: str, method: str, *statuses: int, received: int = 0, sent: int = 0) -> Samples:
    """What calls of one route add to the counts."""
    call = f"method={method} route={route}"
    added: Samples = {("hadakv_http_request_seconds_count", call): len(statuses)}
    added |= {("hadakv_http_requests_total", f"{call} status={status}"): statuses.count(status) for status in statuses}
    sizes = {"hadakv_http_received_bytes_total": received, "hadakv_http_sent_bytes_total": sent}
    return added | {(name, call): size for name, size in sizes.items() if size}


def eventually(look: Callable[[], bool]) -> None:
    """Look again and again until it is so."""
    for _ in range(10_000):
        if look():
            return
    raise AssertionError("it never came to pass")
