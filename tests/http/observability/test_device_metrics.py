"""Device metrics: each job is counted exactly once, and metrics can be read while jobs run."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hadakv_service.testing import RunningService, running_service
from support.assertions import K, V
from support.contract import Caller, append_body
from support.polling import eventually
from support.services.blocked_device import HELD
from support.services.prometheus import Samples, counts, moved, scrape

WAITED = ("wait_seconds_count", "job_seconds_count")


def of_device(found: Samples) -> dict[str, float]:
    return {
        name.removeprefix("hadakv_device_"): value for (name, _), value in counts(found).items() if "_device_" in name
    }


@pytest.mark.parametrize(
    ("act", "jobs", "encodings"),
    [
        (lambda asking, session: asking.append(session, K, V), 1, 1),
        (lambda asking, _: asking.post("/encode", {"x": append_body(K, V)["k"]}), 1, 1),
        (lambda asking, session: asking.get(f"/sessions/{session}"), 1, 0),
        (lambda asking, session: [asking.append(session, K, V) for _ in range(7)], 7, 7),
        (lambda asking, session: asking.put(f"/sessions/{session}", {}), 1, 0),
        (lambda asking, _: asking.get("/healthz"), 0, 0),
        (lambda asking, session: asking.append(session, K, V[:, :1]), 0, 0),
    ],
    ids=["append", "encode", "get", "several appends", "create", "no job", "rejected before the device"],
)
def test_device_counts_each_job_once(
    watched: RunningService,
    asking: Caller,
    session: str,
    act: Callable[[Caller, str], object],
    jobs: int,
    encodings: int,
) -> None:
    found = moved(watched.url, lambda: act(asking, session))

    expected = {**dict.fromkeys(WAITED, jobs), "batch_jobs_count": jobs, "batch_jobs_sum": jobs}
    expected["encode_seconds_count"] = encodings
    assert of_device(found) == {name: value for name, value in expected.items() if value}


def test_chunked_job_counts_once(watched: RunningService, asking: Caller, session: str) -> None:
    long = np.ones((8, 8, 1024, 64), np.float16)

    found = moved(watched.url, lambda: asking.post(f"/sessions/{session}/kv", append_body(long, long)))

    expected = dict.fromkeys((*WAITED, "batch_jobs_count", "batch_jobs_sum", "encode_seconds_count"), 1.0)
    assert of_device(found) == expected
    busy, job, encode = (
        found[f"hadakv_device_{name}", ""] for name in ("busy_seconds_total", "job_seconds_sum", "encode_seconds_sum")
    )
    assert 0 < encode < busy <= job * 1.001


def test_queue_gauge_counts_waiting_jobs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    queued = ("hadakv_device_queue_jobs", "")
    flags = ("--backend", "cpu", "--max-queued-jobs", "4")

    with running_service(*flags, program=("-c", HELD, str(gate))) as service, ThreadPoolExecutor(8) as pool:

        def append(name: str) -> int:
            with Caller(service.url) as caller:
                return caller.append(name, K, V).status

        first = pool.submit(append, "first")
        eventually(lambda: scrape(service.url)[queued] == 1)
        others = [pool.submit(append, f"{n}") for n in range(3)]
        eventually(lambda: scrape(service.url)[queued] == 4)
        rejected = append("late")
        held = scrape(service.url)
        gate.write_bytes(b"go on")
        statuses = [first.result()]
        gate.write_bytes(b"go on")
        statuses += [future.result() for future in others]
        found = scrape(service.url)

    assert (rejected, statuses) == (503, [201] * 4)
    assert held["hadakv_device_queue_limit_jobs", ""] == 4
    assert held["hadakv_device_wait_seconds_count", ""] == 0
    assert held["hadakv_http_requests_total", "method=POST route=/sessions/{id}/kv status=503"] == 1
    assert found[queued] == 0
    assert found["hadakv_device_batch_jobs_count", ""] == 2
    assert found["hadakv_device_batch_jobs_sum", ""] == 4
    assert found["hadakv_device_batch_jobs_bucket", "le=2.0"] == 1, "three jobs were one batch"
    assert found["hadakv_device_wait_seconds_count", ""] == 4
