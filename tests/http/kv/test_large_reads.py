"""Reads that are made piece by piece: the same bytes as small reads, of one version of the session."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np
import pytest

from hadakv_service.http.sending import WHOLE_NBYTES
from hadakv_service.testing import RunningService, running_service
from support.contract import Caller, Json, array, connect
from support.inputs.arrays import FORMS
from support.polling import eventually
from support.services.prometheus import scrape

LAYERS, HEADS, TOKENS, DIM, STEP = 3, 2, 5000, 128, 250
X = np.random.default_rng(11).standard_normal((LAYERS, HEADS, TOKENS, DIM)).astype(np.float16)


def joined(caller: Caller, session: str, **query: str) -> dict[str, dict[str, bytes]]:
    """Return the bytes of each tensor of a session, read in ranges that are answered at once."""
    parts = []
    for start in range(0, TOKENS, STEP):
        parts.append(caller.read(session, start=start, stop=start + STEP, **query))
        assert 0 < sum(len(part["data"]) for name in "kv" for part in parts[-1][name].values()) <= WHOLE_NBYTES
    return {
        name: {
            part: np.concatenate([array(each[name][part]) for each in parts], 2).tobytes() for part in parts[0][name]
        }
        for name in "kv"
    }


def data_of(answer: Json) -> dict[str, dict[str, bytes]]:
    return {name: {part: tensor["data"] for part, tensor in answer[name].items()} for name in "kv"}


@pytest.fixture(scope="module")
def large(caller: Caller) -> str:
    """Return the id of a session appended in three parts, the last layer apart from the others."""
    for layer, x in ((0, X[:2]), (2, X[2:])):
        for a, b in ((0, 300), (300, 301), (301, TOKENS)):
            caller.append("large.reads", x[:, :, a:b], x[:, :, a:b], layer=layer, codec={"k": {"bits": 8}, "v": {}})
    return "large.reads"


@pytest.mark.parametrize("form", ["packed", *FORMS])
def test_large_read_equals_small_ones(caller: Caller, large: str, form: str) -> None:
    response = caller.get(f"/sessions/{large}/kv", form=form)

    assert len(response.content) > WHOLE_NBYTES
    assert data_of(response.body) == joined(caller, large, form=form)


def test_large_ring_equals_the_linear_window(caller: Caller, session: str) -> None:
    window = 4096
    caller.put(f"/sessions/{session}", {"window": window})
    caller.append(session, X, X)

    linear, ring = (caller.read(session, form="float16", layout=layout) for layout in ("linear", "ring"))

    rows = np.arange(TOKENS - window, TOKENS) % window
    np.testing.assert_array_equal(array(ring["k"]["values"])[:, :, rows], array(linear["k"]["values"]))


def test_head_request_has_the_length_and_no_body(server: RunningService, caller: Caller, large: str) -> None:
    expected = caller.get(f"/sessions/{large}/kv")

    with connect(server.url) as connection:
        connection.sendall(
            f"HEAD /sessions/{large}/kv HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")

    if head.startswith(b"HTTP/1.1 200"):
        assert f"content-length: {len(expected.content)}".encode() in head
    assert body == b"" or head.startswith(b"HTTP/1.1 405")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Run a service whose memory holds a tenth of the session, and sends one large response at a time."""
    directory = str(tmp_path_factory.mktemp("narrow"))
    flags = ("--memory-budget", "2MiB", "--disk-budget", "1GiB", "--data-dir", directory, "--max-sending", "1KiB")
    with running_service(*flags) as service:
        yield service


@pytest.fixture(scope="module")
def spilled(narrow: RunningService) -> str:
    """Return the id of a session that is mostly on disk."""
    with Caller(narrow.url) as caller:
        for start in range(0, TOKENS, STEP):
            part = X[:, :, start : start + STEP]
            caller.append("spilled", part, part, codec={"bits": 8})
        assert caller.info("spilled")["tier"] == "mixed"
    return "spilled"


def test_session_larger_than_memory_is_read_at_once(narrow: RunningService, spilled: str) -> None:
    with Caller(narrow.url) as caller:
        response = caller.get(f"/sessions/{spilled}/kv", form="float16")

        assert len(response.content) > WHOLE_NBYTES
        assert data_of(response.body) == joined(caller, spilled, form="float16")
        restored = scrape(narrow.url)
        caller.get(f"/sessions/{spilled}/kv", form="float16")
        pages = (
            scrape(narrow.url)["hadakv_tier_restores_total", "tier=disk"]
            - restored["hadakv_tier_restores_total", "tier=disk"]
        )

    # Each page is read once, although each piece needs all of them.
    assert pages <= 2 * TOKENS // 256


def test_responses_above_the_limit_are_sent_one_by_one(narrow: RunningService, spilled: str) -> None:
    def read(_: int) -> bytes:
        with Caller(narrow.url) as caller:
            return caller.get(f"/sessions/{spilled}/kv", form="float16").content

    with ThreadPoolExecutor(6) as threads:
        answers = set(threads.map(read, range(12)))

    assert len(answers) == 1
    eventually(lambda: scrape(narrow.url)["hadakv_sending_bytes", ""] == 0)


def test_response_is_of_one_version_of_the_session(tmp_path: Path) -> None:
    """The session is truncated, written anew, evicted and deleted while its response is sent."""
    flags = ("--memory-budget", "8MiB", "--disk-budget", "1GiB", "--data-dir", str(tmp_path))
    with running_service(*flags) as service, Caller(service.url) as caller:
        caller.append("a", X, X, codec={"bits": 8})
        before = caller.get("/sessions/a/kv", form="float32")
        with connect(service.url) as connection:
            connection.sendall(
                b"GET /sessions/a/kv?form=float32 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            with connection.makefile("rb") as stream:
                begin = stream.read(1000)
                caller.send("POST", "/sessions/a/truncate", msgpack.packb({"length": 3}))
                caller.append("a", -X[:, :, :100], -X[:, :, :100])
                caller.append("b", X, X, codec={"bits": 8})
                caller.delete("/sessions/a")
                kept = scrape(service.url)["hadakv_sending_bytes", ""]
                caller.append("a", -X, -X)
                content = (begin + stream.read()).partition(b"\r\n\r\n")[2]
        eventually(lambda: scrape(service.url)["hadakv_sending_bytes", ""] == 0)

    assert content == before.content
    # The pages of the deleted session count while the response needs them.
    assert kept > X.nbytes
