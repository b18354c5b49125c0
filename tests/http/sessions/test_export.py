"""Exported files: their content, and that it is the session at one moment."""

from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from safetensors import safe_open

from hadakv_kernels import Codec
from hadakv_kernels.tables import fingerprint
from hadakv_service.testing import RunningService, running_service
from support.backends import assert_same_bits
from support.contract import Caller, array, connect, status_line
from support.inputs.arrays import CODECS, pair
from support.inputs.session_files import METADATA, OCTETS, by_layer, exported, metadata_of, taken_apart, tensors
from support.services.process_memory import peak_nbytes


def stored(caller: Caller, session: str, layer: int) -> dict[str, Any]:
    """Read one layer. Return its arrays by their tensor names in a file."""
    held = caller.read(session, layers=f"{layer}:{layer + 1}")
    return {
        f"layers.{layer}.{stream}.{part}": array(tensor)[0] for stream in "kv" for part, tensor in held[stream].items()
    }


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("head_dim", [64, 512])
def test_file_has_each_layers_tensors_as_stored(caller: Caller, session: str, head_dim: int, codec: Codec) -> None:
    caller.append(session, *pair(3, 2, 300, head_dim), codec={"k": codec.to_mapping(), "v": Codec(6).to_mapping()})
    caller.append(session, *pair(1, 2, 7, head_dim), layer=1)

    found = by_layer(exported(caller, session))

    expected = stored(caller, session, 0) | stored(caller, session, 1) | stored(caller, session, 2)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(found[name], tensor)


def test_file_metadata_describes_the_session(caller: Caller, session: str) -> None:
    options = {"layers": 5, "window": 100, "ttl_seconds": 60.5, "codec": {"k": {"bits": 3}, "v": {"norm": "unbiased"}}}
    caller.put(f"/sessions/{session}", options)
    caller.append(session, *pair(2, 3, 700))
    caller.append(session, *pair(1, 3, 20), layer=3)
    info = caller.info(session)

    found = metadata_of(exported(caller, session))

    assert found == {
        "format": "hadakv-session",
        "version": "2",
        "tables": fingerprint(),
        "session": session,
        "created": info["created"],
        "codec": info["codec"],
        "declared_layers": 5,
        "kv_heads": 3,
        "head_dim": 64,
        "window": 100,
        "ttl_seconds": 60.5,
        "groups": [
            {
                "runs": [
                    {"layers": 2, "base": 512, "length": 700, "page_tokens": 10 * 256},
                    {"layers": 1, "base": 0, "length": 0, "page_tokens": 21 * 256},
                    {"layers": 1, "base": 0, "length": 20, "page_tokens": 21 * 256},
                    {"layers": 1, "base": 0, "length": 0, "page_tokens": 21 * 256},
                ]
            }
        ],
    }
    assert datetime.fromisoformat(found["created"]).tzinfo is not None


def test_safetensors_library_reads_the_file(caller: Caller, session: str, tmp_path: Path) -> None:
    caller.append(session, *pair(2, 2, 300), codec={"k": {"bits": 5}, "v": {"kind": "float16"}})
    caller.append(session, *pair(1, 2, 3), layer=3)
    path = tmp_path / "session.safetensors"
    path.write_bytes(exported(caller, session))

    loaded = safetensors.numpy.load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()

    ours = tensors(path.read_bytes())
    assert loaded.pop("digest").tobytes() == sha256(path.read_bytes()[:-32]).digest()
    assert loaded.keys() == ours.keys()
    for name, tensor in ours.items():
        assert_same_bits(loaded[name], tensor)
    assert metadata == taken_apart(path.read_bytes())[0][METADATA]


def test_tensors_in_the_file_are_aligned(caller: Caller, session: str) -> None:
    caller.append(session, *pair(3, 1, 5, 512), codec={"bits": 3})

    file = exported(caller, session)

    length = int.from_bytes(file[:8], "little")
    assert length % 8 == 0
    assert file[8:9] == b"{"
    for name, head in taken_apart(file)[0].items():
        if name != METADATA:
            assert head["data_offsets"][0] % {"U8": 1, "F16": 2, "F32": 4}[head["dtype"]] == 0, name


def test_export_has_length_type_and_file_name(caller: Caller, session: str) -> None:
    caller.append(session, *pair(2, 2, 300))

    response = caller.get(f"/sessions/{session}/export")

    assert response.headers["content-type"] == OCTETS
    assert response.headers["content-length"] == str(len(response.content))
    assert "transfer-encoding" not in response.headers
    assert response.headers["content-disposition"] == f'attachment; filename="{session}.safetensors"'


def test_same_session_gives_the_same_file(caller: Caller, session: str) -> None:
    caller.append(session, *pair(2, 2, 300))

    assert exported(caller, session) == exported(caller, session)


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"kv_heads": 2}, {"layers": 3, "codec": {"bits": 8}}], ids=str)
def test_session_without_tokens_can_be_exported(caller: Caller, session: str, options: dict[str, Any]) -> None:
    caller.put(f"/sessions/{session}", options)

    file = exported(caller, session)

    assert safetensors.numpy.load(file).keys() == {"digest"}
    assert metadata_of(file)["groups"] == [{"runs": []}]


def test_export_of_missing_session_is_not_found(caller: Caller, session: str) -> None:
    caller.get(f"/sessions/{session}/export").problem(404, "session-not-found")
    assert caller.get("/sessions/a%2fb/export").status == 422


def test_export_updates_last_used(alone: Caller, session: str) -> None:
    alone.append(session, *pair(1, 1, 1))
    before = alone.info(session)["last_used"]

    exported(alone, session)

    assert alone.info(session)["last_used"] > before


# Concurrent requests


def large(caller: Caller, session: str) -> None:
    """Fill a session with more bytes than the socket buffers of a connection hold."""
    for _ in range(4):
        caller.append(session, *pair(4, 4, 512, 256), codec={"kind": "float16"})


@pytest.mark.parametrize("meanwhile", ["append", "truncate", "delete"])
def test_export_is_not_changed_by_later_operations(caller: Caller, session: str, meanwhile: str) -> None:
    large(caller, session)
    expected = exported(caller, session)
    changes = {
        "append": lambda: [caller.append(session, *pair(4, 4, tokens, 256)).status for tokens in (1, 300)],
        "truncate": lambda: [caller.post(f"/sessions/{session}/truncate", {"length": 700}).status],
        "delete": lambda: [caller.delete(f"/sessions/{session}").status],
    }

    with (
        Caller(str(caller.http.base_url)) as other,
        other.http.stream("GET", f"/sessions/{session}/export") as response,
    ):
        pieces = response.iter_raw(1 << 16)
        first = next(pieces)
        statuses = changes[meanwhile]()
        file = first + b"".join(pieces)

    assert set(statuses) <= {200, 204}
    assert file == expected


def test_stalled_export_does_not_delay_other_requests(server: RunningService, caller: Caller, session: str) -> None:
    large(caller, session)

    with connect(server.url) as connection:
        connection.sendall(f"GET /sessions/{session}/export HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        line = status_line(connection)
        # Another export completes while the first one is stalled.
        file = exported(caller, session)
        placed = caller.append(session, *pair(4, 4, 1, 256))

    assert line == b"HTTP/1.1 200 OK"
    (run,) = metadata_of(file)["groups"][0]["runs"]
    assert (run["layers"], run["base"], run["length"]) == (4, 0, 2048)
    assert placed.status == 200
    assert exported(caller, session) != file


def test_export_needs_memory_for_a_few_pages() -> None:
    layers, mebibytes = 16, 8
    with running_service("--memory-budget", "1GiB") as service, Caller(service.url) as caller:
        k, v = pair(1, 4, 2048, 256)
        for layer in range(layers):
            caller.append("large", k, v, layer=layer, codec={"kind": "float16"})
        before = peak_nbytes(service.process.pid)

        with caller.http.stream("GET", "/sessions/large/export") as response:
            nbytes = sum(map(len, response.iter_raw()))
        after = peak_nbytes(service.process.pid)

    assert nbytes > layers * mebibytes << 20
    assert after - before < 3 * mebibytes << 20, f"{(after - before) >> 20} MiB"
