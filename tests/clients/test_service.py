"""The real clients against the real service."""

import asyncio
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hadakv_client import (
    AnswerTooLarge,
    AsyncClient,
    BodyTooLarge,
    Client,
    Codec,
    CodecMismatch,
    Encoded,
    InsufficientStorage,
    InvalidRequest,
    NonFinite,
    NotFound,
    PositionConflict,
    Retries,
    SessionExists,
    SessionNotFound,
    ShapeMismatch,
    Unauthorized,
)
from hadakv_kernels import DTYPES, reference
from hadakv_service.spawn import running_service

pytestmark = pytest.mark.every_backend

DIGEST = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
CODECS = [Codec(), Codec(bits=3, norm="unbiased"), Codec(bits=8, layout="byte", rotation="none"), Codec(kind="float16")]


@pytest.fixture
def k(rng: np.random.Generator) -> Any:
    return rng.standard_normal((2, 3, 5, 64)).astype(np.float16)


@pytest.fixture
def v(rng: np.random.Generator) -> Any:
    return 3 * rng.standard_normal((2, 3, 5, 64)).astype(np.float16)


@pytest.fixture
def session(client: Any, session_id: str) -> Any:
    return client.session(session_id)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Encoded):
        assert_same(a.packed, b.packed)
        assert_same(a.norms, b.norms)
    else:
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}")
def test_what_is_stored_is_what_the_reference_gives(
    client: Any, session_id: str, k: Any, v: Any, dtype: str, codec: Codec
) -> None:
    k, v = k.astype(DTYPES[dtype]), v.astype(DTYPES[dtype])
    spec = codec.at(64)

    appended = client.session(session_id, codec).append(k, v)
    found = client.session(session_id).read()

    for x, answered, stored in ((k, appended.k, found.k), (v, appended.v, found.v)):
        assert_same(answered, reference.encode(x, spec))
        assert_same(stored, answered)


@pytest.mark.parametrize("form", ["float16", "float32", "bfloat16", "rotated"])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}")
def test_what_is_read_back_is_what_the_reference_decodes(
    client: Any, session_id: str, k: Any, v: Any, form: str, codec: Codec
) -> None:
    spec, dtype = codec.at(64), "float32" if form == "rotated" else form
    session = client.session(session_id, codec)
    session.append(k, v, minimal=True)

    found = session.read(1, 4, layers=(1, 2), form=form)

    assert (found.start, found.stop, found.length) == (1, 4, 5)
    for x, values in ((k, found.k), (v, found.v)):
        encoded = reference.encode(np.ascontiguousarray(x[1:2, :, 1:4]), spec)
        assert_same(values, reference.decode(encoded, spec, dtype, inverse=form != "rotated"))


def test_keys_and_values_may_have_codecs_of_their_own(client: Any, session_id: str, k: Any, v: Any) -> None:
    appended = client.session(session_id, {"k": {"bits": 8}, "v": Codec(bits=2)}).append(k, v)

    assert_same(appended.k, reference.encode(k, Codec(bits=8).at(64)))
    assert_same(appended.v, reference.encode(v, Codec(bits=2).at(64)))
    assert client.session(session_id).info().codec == (Codec(bits=8), Codec(bits=2))


def test_appends_follow_one_another(session: Any, k: Any, v: Any) -> None:
    placed = [session.append(k, v) for _ in range(3)]

    assert [each.position for each in placed] == [0, 5, 10]
    assert [each.length for each in placed] == [5, 10, 15]
    assert [each.created for each in placed] == [True, False, False]
    assert session.info().length == 15


def test_arrays_that_lie_otherwise_in_memory_are_stored_the_same(session: Any, k: Any, v: Any) -> None:
    token_first = np.ascontiguousarray(k.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)

    appended = session.append(token_first, v[:, :, ::-1])

    assert_same(appended.k, reference.encode(k, Codec().at(64)))
    assert_same(appended.v, reference.encode(np.ascontiguousarray(v[:, :, ::-1]), Codec().at(64)))


def test_mlx_arrays_are_stored_as_numpy_arrays_are(session: Any, k: Any, v: Any) -> None:
    mx = pytest.importorskip("mlx.core")

    appended = session.append(*(mx.array(x).astype(mx.bfloat16) for x in (k, v)))

    assert_same(appended.k, reference.encode(k.astype(ml_dtypes.bfloat16), Codec().at(64)))


def test_one_layer_is_appended_without_its_axis(session: Any, k: Any, v: Any) -> None:
    first = session.append(k[0], v[0])
    second = session.append(k[1], v[1], layer=1)

    assert first.k.packed.shape == (1, 3, 5, 32)
    assert (first.position, second.position) == (0, 0)
    assert [span.length for span in session.info().layers] == [5, 5]


def test_layers_are_followed_each_by_itself(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)
    for layer in (0, 1):
        assert session.append(k[layer], v[layer], layer=layer).position == 5

    assert session.append(k, v).position == 10


def test_a_handle_goes_on_where_another_stopped(client: Any, session_id: str, k: Any, v: Any) -> None:
    client.session(session_id).append(k, v)

    assert client.session(session_id).append(k, v).position == 5


def test_a_handle_that_was_overtaken_conflicts_once(client: Any, session_id: str, k: Any, v: Any) -> None:
    slow, quick = client.session(session_id), client.session(session_id)
    slow.append(k, v)
    quick.append(v, k)

    with pytest.raises(PositionConflict) as refused:
        slow.append(k, v)

    assert refused.value.length == 10
    assert slow.append(k, v).position == 10


def test_everyone_may_append_to_wherever_the_end_is(client: Any, session_id: str, k: Any, v: Any) -> None:
    handles = [client.session(session_id) for _ in range(3)]

    assert [each.append(k, v, position="end").position for each in handles] == [0, 5, 10]
    assert handles[0].append(k, v).position == 15


def test_a_repeated_append_gives_the_same_answer_and_stores_nothing(session: Any, k: Any, v: Any) -> None:
    first = session.append(k, v, position=0)
    session.append(v, k)
    again = session.append(k, v, position=0)

    assert_same(again.k, first.k)
    assert (again.position, again.length, again.created) == (0, 5, False)
    assert session.append(k, v).position == 10


def test_a_minimal_append_stores_all_the_same(session: Any, k: Any, v: Any) -> None:
    placed = session.append(k, v, minimal=True)

    assert (placed.position, placed.tokens, placed.created) == (0, 5, True)
    assert_same(session.read().k, reference.encode(k, Codec().at(64)))


def test_no_tokens_are_appended_to_no_effect(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    nothing = session.append(k[:, :, :0], v[:, :, :0])

    assert (nothing.position, nothing.length) == (5, 5)
    assert nothing.k.packed.shape == (2, 3, 0, 32)


def test_what_is_received_is_read_only(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    with pytest.raises(ValueError, match="read-only"):
        session.read(form="float32").k[:] = 0


def test_a_created_session_is_described(client: Any, session_id: str) -> None:
    session = client.session(session_id, {"bits": 3})

    info = session.create(layers=2, kv_heads=3, head_dim=64, window=8, ttl_seconds=600)

    assert info.session == session.id == session_id
    assert info.codec == (Codec(bits=3), Codec(bits=3))
    assert (info.kv_heads, info.head_dim, info.window, info.ttl_seconds) == (3, 64, 8, 600)
    assert (info.layers, info.length, info.nbytes, info.raw_nbytes) == ((), 0, 0, 0)
    assert info.expires is not None
    assert info.expires > info.created
    assert session.info().session == session_id


def test_a_session_that_decided_nothing_is_described_and_read(session: Any) -> None:
    info = session.create()

    assert (info.codec, info.kv_heads, info.head_dim) == (None, None, None)
    assert session.read().k.packed.shape == (0, 0, 0, 0)
    assert session.read(form="bfloat16").v.shape == (0, 0, 0, 0)


def test_a_window_keeps_the_last_tokens(session: Any, k: Any, v: Any) -> None:
    session.create(window=4)
    session.append(k, v)
    session.append(v, k)

    found = session.read()

    assert (found.start, found.stop) == (6, 10)
    assert_same(found.k, reference.encode(np.ascontiguousarray(v[:, :, 1:]), Codec().at(64)))
    assert session.info().layers == ((0, 6, 10), (1, 6, 10))


def test_a_session_is_there_until_it_is_deleted(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    session.delete()

    for look in (session.info, session.read, session.delete):
        with pytest.raises(SessionNotFound):
            look()
    assert session.append(k, v).position == 0


def test_sessions_are_listed_over_many_pages(client: Any, session_id: str) -> None:
    names = [f"{session_id[-100:]}:{i:03}" for i in range(230)]
    for name in names:
        client.session(name).create()

    listed = list(client.sessions(session_id[-100:] + ":"))

    assert [info.session for info in listed] == names


def test_no_sessions_are_no_pages(client: Any) -> None:
    assert list(client.sessions("nobody-has-this")) == []


@pytest.mark.parametrize("codec", [*CODECS, {"bits": 5}, None], ids=str)
def test_encoding_and_decoding_need_no_session(client: Any, k: Any, codec: Any) -> None:
    exact = codec if isinstance(codec, Codec) else Codec.from_mapping(codec or {})

    encoded = client.encode(k[0], codec)
    decoded = client.decode(encoded, codec, 64, "bfloat16")

    assert_same(encoded, reference.encode(k[0], exact.at(64)))
    assert_same(decoded, reference.decode(encoded, exact.at(64), "bfloat16"))


def test_what_the_codec_saw_can_be_asked_for(client: Any, k: Any) -> None:
    seen = client.encode(k, {"bits": 2}, diagnostics=True)

    expected = reference.diagnose(k, Codec(bits=2).at(64))
    assert_same(seen.encoded, expected.encoded)
    assert_same(seen.scaled, expected.scaled)
    assert_same(seen.rms, expected.rms)


def test_a_service_is_healthy_and_ready(client: Any) -> None:
    assert client.healthy()
    assert client.ready()


@pytest.mark.parametrize(("layer", "head", "token"), [(0, 0, 0), (1, 2, 4)])
def test_what_is_not_finite_is_refused_by_its_place(
    session: Any, k: Any, v: Any, layer: int, head: int, token: int
) -> None:
    v[layer, head, token, 17] = np.nan

    with pytest.raises(NonFinite) as refused:
        session.append(k, v, layer=3)

    assert (refused.value.stream, refused.value.layer) == ("v", 3 + layer)
    assert (refused.value.head, refused.value.token) == (head, token)
    with pytest.raises(SessionNotFound):
        session.info()


def test_what_is_not_finite_is_not_encoded(client: Any, k: Any) -> None:
    k[0, 1, 2, 3] = np.inf

    with pytest.raises(NonFinite) as refused:
        client.encode(k)

    assert (refused.value.stream, refused.value.row, refused.value.layer) == ("x", 7, None)


def test_an_answer_larger_than_any_body_may_be_is_refused(connect: Any, narrow: Any) -> None:
    x = np.ones((1, 8, 200, 512), np.uint8)
    encoded = Encoded(x[..., :128], np.ones((1, 8, 200, 2), np.float32))

    with pytest.raises(AnswerTooLarge) as refused:
        connect(narrow.url, token="secret").decode(encoded, {"bits": 2}, 512)

    assert refused.value.limit == 1 << 20


def test_tensors_that_disagree_are_refused_by_field(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        session.append(k, v[:, :2])

    assert [error.field for error in refused.value.errors] == ["v.shape"]


def test_no_layers_are_refused(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(InvalidRequest, match="at least one layer"):
        session.append(k[:0], v[:0])


def test_a_range_the_session_does_not_have_is_refused(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    for wanted in ({"start": 6}, {"layers": (0, 3)}, {"start": -1}):
        with pytest.raises(InvalidRequest) as refused:
            session.read(**wanted)
        assert [error.field for error in refused.value.errors] == list(wanted)


def test_another_shape_than_the_session_s_is_a_mismatch(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    with pytest.raises(ShapeMismatch):
        session.append(k[:, :2], v[:, :2])
    with pytest.raises(SessionExists):
        session.create(head_dim=128)


def test_another_codec_than_the_session_s_is_a_mismatch(client: Any, session_id: str, k: Any, v: Any) -> None:
    client.session(session_id, {"bits": 4}).append(k, v)

    with pytest.raises(CodecMismatch):
        client.session(session_id, {"bits": 3}).append(k, v)


def test_several_threads_share_a_client(server: Any, session_id: str, k: Any, v: Any) -> None:
    with Client(server.url) as client:

        def write(thread: int) -> None:
            session = client.session(f"{session_id}:{thread}")
            for _ in range(10):
                session.append(k, v, minimal=True)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [client.session(f"{session_id}:{i}").info().length for i in range(4)] == [50] * 4


def test_many_tasks_share_an_asynchronous_client(server: Any, session_id: str, k: Any, v: Any) -> None:
    async def write(client: AsyncClient, task: int) -> int:
        session = client.session(f"{session_id}:{task}")
        for _ in range(3):
            await session.append(k, v, minimal=True)
        return (await session.info()).length

    async def write_all() -> list[int]:
        async with AsyncClient(server.url) as client:
            return await asyncio.gather(*(write(client, task) for task in range(16)))

    assert asyncio.run(write_all()) == [15] * 16


def test_an_upload_takes_no_memory_to_speak_of(connect: Any, server: Any, session_id: str) -> None:
    x = np.ones((1, 8, 2048, 512), np.float16)
    session = connect(server.url).session(session_id, {"kind": "float16"})
    session.append(x[:, :, :1], x[:, :, :1])
    tracemalloc.start()

    session.append(x, x, minimal=True)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    session.delete()
    assert peak < x.nbytes // 4


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service with little room that wants a token."""
    tokens = tmp_path_factory.mktemp("narrow") / "tokens"
    tokens.write_text(f"alice:{DIGEST}\n")
    with running_service("--token-file", str(tokens), "--max-body", "1MiB", "--memory-budget", "256KiB") as service:
        yield service


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_token_nothing_is_answered(connect: Any, narrow: Any, token: str | None) -> None:
    large = np.ones((1, 8, 4096, 512), np.float16)
    client = connect(narrow.url, token=token)

    with pytest.raises(Unauthorized):
        list(client.sessions())
    with pytest.raises(Unauthorized):
        client.session("a").append(large, large, position=0)
    assert client.healthy()


def test_too_large_a_body_is_refused_with_the_limit(connect: Any, narrow: Any) -> None:
    large = np.ones((1, 8, 4096, 512), np.float16)

    with pytest.raises(BodyTooLarge) as refused:
        connect(narrow.url, token="secret").session("a").append(large, large)

    assert refused.value.limit == 1 << 20


def test_what_does_not_fit_the_memory_is_refused(connect: Any, narrow: Any) -> None:
    x = np.ones((1, 1, 600, 256), np.float16)
    session = connect(narrow.url, token="secret").session("full", {"kind": "float16"})

    with pytest.raises(InsufficientStorage):
        session.append(x, x)
    with pytest.raises(SessionNotFound):
        session.info()


def test_an_evicted_session_is_gone_and_its_handle_says_so(connect: Any, narrow: Any) -> None:
    x = np.ones((1, 1, 200, 256), np.float16)
    client = connect(narrow.url, token="secret")
    first, second = (client.session(name, {"kind": "float16"}) for name in ("first", "second"))

    first.append(x, x)
    second.append(x, x)

    with pytest.raises(PositionConflict) as refused:
        first.append(x, x)
    assert refused.value.length == 0


def test_another_path_of_the_same_server_is_no_service(connect: Any, server: Any) -> None:
    client = connect(server.url + "/api/")

    with pytest.raises(NotFound):
        client.session("a").info()
    assert not client.healthy()


def test_a_unix_socket_is_as_good(connect: Any, tmp_path: Path, k: Any, v: Any) -> None:
    path = str(tmp_path / "s")
    command = [sys.executable, "-m", "hadakv_service", "--uds", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        assert path in service.stdout.readline()

        placed = connect("http://hadakv", uds=path, retries=Retries(0)).session("a").append(k, v)

        service.terminate()
    assert placed.length == 5
