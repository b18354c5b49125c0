"""Sessions written to files and made of files, through the clients, against the service on every backend."""

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from clients.samples import CODECS, assert_same
from hadakv_client import (
    BodyTooLarge,
    Codec,
    ConnectionLost,
    InvalidRequest,
    MalformedBody,
    ProtocolError,
    Retries,
    SessionExists,
    SessionNotFound,
)
from hadakv_service.testing import running_service


@pytest.mark.every_backend
@pytest.mark.parametrize("codec", CODECS, ids=["dense", "unbiased", "byte", "float16"])
def test_an_imported_session_is_the_exported_one_and_goes_on(
    client: Any, session_id: str, tmp_path: Path, rng: np.random.Generator, codec: Codec
) -> None:
    session = client.session(session_id, codec)
    k, v = (rng.standard_normal((2, 3, 300, 64)).astype(np.float16) for _ in "kv")
    session.append(k, v)

    session.export(tmp_path / "file")
    copy = client.import_session(tmp_path / "file", f"{session_id}-copy")
    placed = [each.append(k, v) for each in (session, copy)]

    assert [each.position for each in placed] == [300, 300]
    assert copy.id == f"{session_id}-copy"
    for form in ("packed", "float32"):
        held, expected = copy.read(form=form), session.read(form=form)
        assert (held.start, held.stop) == (0, 600)
        assert_same(held.k, expected.k)
        assert_same(held.v, expected.v)


@pytest.mark.every_backend
def test_windows_and_layers_of_different_lengths_come_back(session: Any, client: Any, tmp_path: Path) -> None:
    k, v = (np.random.default_rng(i).standard_normal((2, 1, 700, 128)).astype(np.float32) for i in (1, 2))
    session.create(window=100, ttl_seconds=600)
    session.append(k, v)
    session.append(k[:1, :, :9], v[:1, :, :9], layer=1)

    session.export(tmp_path / "file")
    copy = client.import_session(tmp_path / "file", f"{session.id}-copy")

    info, expected = copy.info(), session.info()
    assert (info.layers, info.nbytes, info.window) == (expected.layers, expected.nbytes, 100)
    assert (info.codec, info.ttl_seconds) == (expected.codec, 600)
    for layers in ((0, 1), (1, 2)):
        ring, theirs = (each.read(layers=layers, layout="ring") for each in (copy, session))
        assert_same(ring.k, theirs.k)
        assert_same(ring.v, theirs.v)


@pytest.fixture
def small(session: Any, k: Any, v: Any, tmp_path: Path) -> Path:
    """A file of a session that is there still."""
    session.append(k, v)
    session.export(tmp_path / "small")
    return tmp_path / "small"


def test_the_id_is_in_the_file(session: Any, client: Any, small: Path) -> None:
    with pytest.raises(SessionExists):
        client.import_session(small)
    session.delete()

    assert client.import_session(str(small)).id == session.id


def test_a_file_is_read_by_the_safetensors_library(session: Any, small: Path) -> None:
    with safe_open(small, "numpy") as file:
        packed = file.get_tensor("layers.1.v.packed")

    np.testing.assert_array_equal(packed, session.read().v.packed[1])


def test_a_file_replaces_another_and_nothing_is_left_beside_it(session: Any, small: Path) -> None:
    before = small.read_bytes()
    small.write_text("something else")

    session.export(os.fspath(small))

    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_a_file_has_the_rights_that_others_have(session: Any, k: Any, v: Any, tmp_path: Path) -> None:
    session.append(k, v)
    (tmp_path / "other").touch()

    session.export(tmp_path / "file")

    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_export_goes_where_a_link_leads(session: Any, small: Path) -> None:
    link = small.with_name("link")
    link.symlink_to(small)
    before = small.read_bytes()
    small.write_text("something else")

    session.export(link)

    assert link.is_symlink()
    assert small.read_bytes() == before


def test_progress_is_told_to_the_end(session: Any, client: Any, small: Path) -> None:
    written: list[tuple[int, int | None]] = []
    sent: list[tuple[int, int | None]] = []
    nbytes = small.stat().st_size

    session.export(small, lambda done, total: written.append((done, total)))
    client.import_session(small, f"{session.id}-copy", lambda done, total: sent.append((done, total)))

    assert written[-1] == sent[-1] == (nbytes, nbytes)


def test_a_large_file_goes_and_comes_in_pieces(client: Any, session: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((4, 4, 1500, 128)).astype(np.float16)
    wide = client.session(session.id, {"kind": "float16"})
    wide.append(x, x)
    told: list[int] = []

    wide.export(tmp_path / "file", lambda done, _: told.append(done))
    copy = client.import_session(tmp_path / "file", f"{session.id}-copy", lambda done, _: told.append(-done))

    pieces = (tmp_path / "file").stat().st_size / (1 << 20)
    assert pieces > 11
    assert len([done for done in told if done > 0]) == len([done for done in told if done < 0]) == np.ceil(pieces)
    np.testing.assert_array_equal(copy.read(form="float16").v, x)


# What goes wrong


def test_there_is_no_file_of_what_is_not_there(session: Any, tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound):
        session.export(tmp_path / "file")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\xff" * 100, b"\x02" + bytes(7) + b"{}", b"\x04" + bytes(7) + b"null"],
    ids=["empty", "short", "ones", "object", "null"],
)
def test_a_file_that_names_no_session_is_not_sent_without_an_id(
    client: Any, session_id: str, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ValueError, match="is no file that a session was exported to"):
        client.import_session(tmp_path / "file")
    with pytest.raises((MalformedBody, InvalidRequest)):
        client.import_session(tmp_path / "file", session_id)


def test_a_damaged_file_is_refused_and_leaves_nothing(client: Any, session: Any, small: Path) -> None:
    small.write_bytes(small.read_bytes()[:-1])

    with pytest.raises(MalformedBody, match="truncated"):
        client.import_session(small, f"{session.id}-copy")
    with pytest.raises(SessionNotFound):
        client.session(f"{session.id}-copy").info()


def test_a_file_of_another_version_is_refused_by_the_field(client: Any, session: Any, small: Path) -> None:
    small.write_bytes(small.read_bytes().replace(b'"version":"1"', b'"version":"9"'))

    with pytest.raises(InvalidRequest, match="another version of hadakv") as refused:
        client.import_session(small, f"{session.id}-copy")

    assert [error.field for error in refused.value.errors] == ["__metadata__.version"]


def test_a_file_beyond_the_largest_body_is_refused(connect: Callable[..., Any], small: Path) -> None:
    with running_service("--max-body", "1KiB") as service, pytest.raises(BodyTooLarge):
        connect(service.url).import_session(small)


@pytest.mark.parametrize("path", ["nowhere/file", "."], ids=["nowhere", "folder"])
def test_what_cannot_be_written_or_read_is_an_error_of_the_system(
    session: Any, client: Any, small: Path, path: str
) -> None:
    for call in (session.export, lambda each: client.import_session(each, "x")):
        with pytest.raises(OSError, match=re.escape(str(small.parent / path))):
            call(small.parent / path)

    assert list(small.parent.iterdir()) == [small]


def test_what_is_no_regular_file_is_not_replaced(session: Any, small: Path) -> None:
    pipe = small.with_name("pipe")
    os.mkfifo(pipe)

    for path in (pipe, small.parent):
        with pytest.raises(OSError, match="is no regular file"):
            session.export(path)

    assert pipe.is_fifo()


@contextmanager
def no_file_larger_than(nbytes: int) -> Iterator[None]:
    """A disk that is full once a file has so many bytes, as far as this process can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(session: Any, small: Path) -> None:
    small.write_text("something else")

    with no_file_larger_than(2000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        session.export(small)

    assert small.read_text() == "something else"
    assert list(small.parent.iterdir()) == [small]


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 10\r\n\r\n"


def test_a_connection_that_breaks_leaves_what_was_there(
    connect: Callable[..., Any], rigged: Callable[..., Any], tmp_path: Path
) -> None:
    def breaks_off(exchange: Any) -> None:
        exchange.send(HEAD + b"half ")
        exchange.hang_up()

    file = tmp_path / "file"
    file.write_text("something else")
    server = rigged(*[breaks_off] * 3)

    with pytest.raises(ConnectionLost):
        connect(server.url, retries=Retries(2, first_seconds=0.0)).session("a").export(file)

    assert server.calls == ["GET /sessions/a/export"] * 3
    assert file.read_text() == "something else"
    assert list(tmp_path.iterdir()) == [file]


def test_an_export_is_tried_again_from_the_start(
    connect: Callable[..., Any], rigged: Callable[..., Any], tmp_path: Path
) -> None:
    def breaks_off(exchange: Any) -> None:
        exchange.send(HEAD + b"wrong")
        exchange.hang_up()

    server = rigged(breaks_off, lambda exchange: exchange.send(HEAD + b"0123456789"))

    connect(server.url, retries=Retries(2, first_seconds=0.0)).session("a").export(tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_an_import_whose_answer_is_lost_is_not_sent_again(
    connect: Callable[..., Any], rigged: Callable[..., Any], small: Path
) -> None:
    def hears_and_goes(exchange: Any) -> None:
        exchange.body()
        exchange.hang_up()

    server = rigged(*[hears_and_goes] * 3)

    with pytest.raises(ConnectionLost):
        connect(server.url).import_session(small)

    assert server.calls == [f"POST /sessions/{server.exchanges[0].path.split('/')[2]}/import"]
    assert server.exchanges[0].headers["content-length"] == str(small.stat().st_size)


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_an_answer_that_is_no_file_is_not_written(
    connect: Callable[..., Any], rigged: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: 6\r\n\r\n<html>" % kind.encode()
    server = rigged(lambda exchange: exchange.send(page))

    with pytest.raises(ProtocolError, match="is no file"):
        connect(server.url).session("a").export(tmp_path / "file")

    assert list(tmp_path.iterdir()) == []
