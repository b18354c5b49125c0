"""Export and import of session files through both clients, against the service on every backend."""

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

from hadakv_client import (
    Codec,
    FileCorrupt,
    InvalidRequest,
    MalformedBody,
    SessionExists,
    SessionNotFound,
)
from hadakv_service.testing import running_service
from support.inputs.codecs import CODECS, assert_same
from support.inputs.session_files import as_version_1


@pytest.mark.every_backend
@pytest.mark.parametrize("codec", CODECS, ids=["dense", "unbiased", "byte", "float16"])
def test_imported_session_equals_the_exported_one(
    client: Any, session_id: str, tmp_path: Path, rng: np.random.Generator, codec: Codec
) -> None:
    session = client.session(session_id, codec)
    k, v = (rng.standard_normal((2, 3, 300, 64)).astype(np.float16) for _ in "kv")
    session.append(k, v)

    session.export(tmp_path / "file")
    copy = client.import_session(tmp_path / "file", f"{session_id}-copy")
    results = [each.append(k, v) for each in (session, copy)]

    assert [each.position for each in results] == [300, 300]
    assert copy.id == f"{session_id}-copy"
    for form in ("packed", "float32"):
        found, expected = copy.read(form=form), session.read(form=form)
        assert (found.start, found.stop) == (0, 600)
        assert_same(found.k, expected.k)
        assert_same(found.v, expected.v)


@pytest.mark.every_backend
def test_import_restores_windows_and_layer_lengths(session: Any, client: Any, tmp_path: Path) -> None:
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
    """Export a session to a file. Return the path; the session still exists."""
    session.append(k, v)
    session.export(tmp_path / "small")
    return tmp_path / "small"


def test_import_without_id_uses_the_exported_id(session: Any, client: Any, small: Path) -> None:
    with pytest.raises(SessionExists):
        client.import_session(small)
    session.delete()

    assert client.import_session(str(small)).id == session.id


def test_file_can_be_read_by_the_safetensors_library(session: Any, small: Path) -> None:
    with safe_open(small, "numpy") as file:
        packed = file.get_tensor("groups.0.runs.0.pages.0.v.packed")

    np.testing.assert_array_equal(packed, session.read().v.packed)


def test_export_replaces_the_file_and_leaves_no_other(session: Any, small: Path) -> None:
    before = small.read_bytes()
    small.write_text("something else")

    session.export(os.fspath(small))

    assert small.read_bytes() == before
    assert list(small.parent.iterdir()) == [small]


def test_exported_file_has_default_permissions(session: Any, k: Any, v: Any, tmp_path: Path) -> None:
    session.append(k, v)
    (tmp_path / "other").touch()

    session.export(tmp_path / "file")

    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_export_follows_a_link(session: Any, small: Path) -> None:
    link = small.with_name("link")
    link.symlink_to(small)
    before = small.read_bytes()
    small.write_text("something else")

    session.export(link)

    assert link.is_symlink()
    assert small.read_bytes() == before


def test_progress_reaches_the_file_size(session: Any, client: Any, small: Path) -> None:
    written: list[tuple[int, int | None]] = []
    sent: list[tuple[int, int | None]] = []
    nbytes = small.stat().st_size

    session.export(small, lambda done, total: written.append((done, total)))
    client.import_session(small, f"{session.id}-copy", lambda done, total: sent.append((done, total)))

    assert written[-1] == sent[-1] == (nbytes, nbytes)


def test_large_file_is_transferred_in_chunks(client: Any, session: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((4, 4, 1500, 128)).astype(np.float16)
    wide = client.session(session.id, {"kind": "float16"})
    wide.append(x, x)
    reported: list[int] = []

    wide.export(tmp_path / "file", lambda done, _: reported.append(done))
    copy = client.import_session(tmp_path / "file", f"{session.id}-copy", lambda done, _: reported.append(-done))

    chunks = (tmp_path / "file").stat().st_size / (1 << 20)
    assert chunks > 11
    assert (
        len([done for done in reported if done > 0]) == len([done for done in reported if done < 0]) == np.ceil(chunks)
    )
    np.testing.assert_array_equal(copy.read(form="float16").v, x)


def test_export_of_missing_session_creates_no_file(session: Any, tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound):
        session.export(tmp_path / "file")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\xff" * 100, b"\x02" + bytes(7) + b"{}", b"\x04" + bytes(7) + b"null"],
    ids=["empty", "short", "ones", "object", "null"],
)
def test_invalid_file_is_not_sent_without_an_id(client: Any, session_id: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ValueError, match="is not a hadakv session file"):
        client.import_session(tmp_path / "file")
    with pytest.raises((MalformedBody, InvalidRequest)):
        client.import_session(tmp_path / "file", session_id)


def test_import_of_truncated_file_creates_no_session(client: Any, session: Any, small: Path) -> None:
    small.write_bytes(small.read_bytes()[:-1])

    with pytest.raises(MalformedBody, match="truncated"):
        client.import_session(small, f"{session.id}-copy")
    with pytest.raises(SessionNotFound):
        client.session(f"{session.id}-copy").info()


def test_import_of_other_version_raises_with_the_field(client: Any, session: Any, small: Path) -> None:
    small.write_bytes(small.read_bytes().replace(b'"version":"2"', b'"version":"9"'))

    with pytest.raises(InvalidRequest, match="another version of hadakv") as raised:
        client.import_session(small, f"{session.id}-copy")

    assert [error.field for error in raised.value.errors] == ["__metadata__.version"]


def test_import_of_damaged_file_raises_file_corrupt(client: Any, session: Any, small: Path) -> None:
    damaged = bytearray(small.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    small.write_bytes(damaged)

    with pytest.raises(FileCorrupt, match="SHA-256"):
        client.import_session(small, f"{session.id}-copy")
    with pytest.raises(SessionNotFound):
        client.session(f"{session.id}-copy").info()


def test_import_of_version_1_file_warns(client: Any, session: Any, small: Path) -> None:
    small.write_bytes(as_version_1(small.read_bytes()))

    with pytest.warns(UserWarning, match="no checksum"):
        copy = client.import_session(small, f"{session.id}-copy")

    assert_same(copy.read().k, session.read().k)


def test_import_is_not_limited_by_max_body(connect: Callable[..., Any], small: Path) -> None:
    with running_service("--max-body", "1KiB") as service:
        assert connect(service.url).import_session(small).info().length > 0


def test_import_of_large_file_to_a_taken_id_raises_session_exists(client: Any, session: Any, tmp_path: Path) -> None:
    x = np.ones((4, 4, 3000, 128), np.float16)
    client.session(session.id, {"kind": "float16"}).append(x, x)
    session.export(tmp_path / "large")

    with pytest.raises(SessionExists):
        client.import_session(tmp_path / "large")


@pytest.mark.parametrize("path", ["nowhere/file", "."], ids=["nowhere", "folder"])
def test_path_that_cannot_be_opened_raises_os_error(session: Any, client: Any, small: Path, path: str) -> None:
    for call in (session.export, lambda each: client.import_session(each, "x")):
        with pytest.raises(OSError, match=re.escape(str(small.parent / path))):
            call(small.parent / path)

    assert list(small.parent.iterdir()) == [small]


def test_export_does_not_replace_a_pipe_or_a_folder(session: Any, small: Path) -> None:
    pipe = small.with_name("pipe")
    os.mkfifo(pipe)

    for path in (pipe, small.parent):
        with pytest.raises(OSError, match="is not a regular file"):
            session.export(path)

    assert pipe.is_fifo()


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """Limit the file size of this process, which has the effect of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_export_to_a_full_disk_keeps_the_previous_file(session: Any, small: Path) -> None:
    small.write_text("something else")

    with file_size_limit(2000), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        session.export(small)

    assert small.read_text() == "something else"
    assert list(small.parent.iterdir()) == [small]
