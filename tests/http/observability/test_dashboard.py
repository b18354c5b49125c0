"""The Grafana dashboard and the alert rules: every metric, label and value that they name exists."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from hadakv_service.http.openapi.problem_schemas import error_classes
from hadakv_service.testing import running_service
from support.assertions import K, V
from support.contract import Caller
from support.services.prometheus import Samples, scrape

FOLDER = Path(__file__).parents[3] / "service" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text("utf-8"))
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
# Labels that Prometheus adds.
ADDED = {"instance", "job"}
# What a metric name looks like, followed by its label matchers.
SELECTOR = re.compile(r"\b(up|(?:hadakv|process|python)_\w+)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"')
BY = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


class Expression(NamedTuple):
    name: str
    text: str
    legend: str


def panels(of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in of.get("panels", ()):
        yield panel
        yield from panels(panel)


EXPRESSIONS = [
    *(
        Expression(panel["title"], target["expr"], target["legendFormat"])
        for panel in panels(DASHBOARD)
        for target in panel.get("targets", ())
    ),
    *(Expression(rule["alert"], rule["expr"], "") for rule in RULES),
    *(
        Expression(variable["name"], variable["definition"], "")
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    ),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Return the samples of a service with a disk that got an append, a read and an invalid request."""
    flags = ("--data-dir", str(tmp_path_factory.mktemp("data")), "--disk-budget", "1GiB")
    with running_service(*flags) as service, Caller(service.url) as caller:
        caller.append("a", K, V)
        caller.read("a")
        caller.get("/sessions/missing")
        return scrape(service.url)


@pytest.fixture(scope="module")
def values(found: Samples) -> dict[str, dict[str, set[str]]]:
    """Return the values of each label of each metric."""
    values: dict[str, dict[str, set[str]]] = {"up": {}}
    for name, text in found:
        labels = values.setdefault(name, {})
        for part in re.findall(r"(\w+)=(.*?)(?= \w+=|$)", text):
            labels.setdefault(part[0], set()).add(part[1])
    values["hadakv_rejected_requests_total"]["reason"] |= {error.slug for error in error_classes()}
    values["hadakv_http_requests_total"]["status"] |= {"500", "503", "507"}
    return values


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=[f"{each.name}-{each.legend}" for each in EXPRESSIONS])
def test_metrics_labels_and_values_exist(expression: Expression, values: dict[str, dict[str, set[str]]]) -> None:
    named = SELECTOR.findall(expression.text)
    labels = {label for name, _ in named for label in values[name]} | ADDED

    assert named
    for name, matchers in named:
        for label, operator, value in MATCHER.findall(matchers):
            assert label in {*values[name], *ADDED}, (name, label)
            assert label in ADDED or operator == "=~" or value in values[name][label], (name, label, value)
    kept = {label.strip() for group in BY.findall(expression.text) for label in group.split(",")}
    assert kept <= labels
    assert set(re.findall(r"{{(\w+)}}", expression.legend)) <= (kept or labels)


def test_unknown_metric_is_seen(values: dict[str, dict[str, set[str]]]) -> None:
    with pytest.raises(KeyError):
        test_metrics_labels_and_values_exist(Expression("", "rate(hadakv_nothing_total[5m])", ""), values)


def test_panels_have_places_and_ids_of_their_own() -> None:
    found = list(panels(DASHBOARD))
    cells = [
        (x, y)
        for panel in found
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in found}) == len(found)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]

    assert len(set(names)) == len(names) >= 11
    assert all(set(rule) <= {"alert", "expr", "for"} for rule in RULES)
    table = (FOLDER.parents[1] / "docs" / "running.md").read_text("utf-8")
    assert re.findall(r"^\| `(Hadakv\w+)` \|", table, re.M) == names
