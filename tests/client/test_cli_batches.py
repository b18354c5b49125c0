"""Program `hadakv` with several sessions, pipes, JSON, files of arrays, tokens and the service's status."""

import json
import os
import pty
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hadakv_client import Client
from hadakv_service.testing import running_service
from support.cli import PROGRAM, Finished, assert_fails, environment, run_program

K = np.random.default_rng(7).standard_normal((2, 3, 5, 64)).astype(np.float16)
V = 2 * K
FLOAT16 = {"kind": "float16"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Run a service whose sessions may all be deleted."""
    with running_service() as service:
        yield service.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """Return a client of a service with the sessions a1, a2 and b."""
    with Client(url) as client:
        for info in client.sessions():
            client.session(info.session).delete()
        for name in ("a1", "a2", "b"):
            client.session(name, FLOAT16).append(K, V)
        yield client


def ids(client: Client) -> list[str]:
    return [info.session for info in client.sessions()]


def piped(folder: Path, url: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run the program with bytes on stdin, and return what it writes to stdout."""
    command = [*PROGRAM, *arguments]
    return subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, check=True, cwd=folder, env=environment(url)
    ).stdout


def documents(finished: Finished) -> list[dict[str, Any]]:
    assert (finished.returncode, finished.stderr) == (0, "")
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_json_has_one_object_per_line(client: Client, url: str, tmp_path: Path) -> None:
    listed = documents(run_program(tmp_path, "sessions", "ls", "--json", url=url))
    shown = documents(run_program(tmp_path, "sessions", "show", "a1", "b", "--json", url=url))
    forked = documents(run_program(tmp_path, "sessions", "fork", "a1", "c", "--length", 3, "--json", url=url))
    cut = documents(run_program(tmp_path, "sessions", "truncate", "c", 2, "--json", url=url))

    assert [each["session"] for each in listed] == ["a1", "a2", "b"]
    assert [(each["session"], each["durability"], each["tier"]) for each in shown] == [
        ("a1", "memory", "memory"),
        ("b", "memory", "memory"),
    ]
    assert [each["length"] for each in (*forked, *cut)] == [3, 2]
    assert client.session("c").info().length == 2


def test_rm_takes_a_prefix_or_ids_from_stdin(client: Client, url: str, tmp_path: Path) -> None:
    by_prefix = run_program(tmp_path, "sessions", "rm", "--prefix", "a", url=url)
    left = ids(client)
    piped(tmp_path, url, "sessions", "rm", "-", stdin=piped(tmp_path, url, "sessions", "ls", "--quiet"))

    assert (by_prefix.returncode, by_prefix.stdout, left, ids(client)) == (0, "deleted 2 sessions\n", ["b"], [])


def test_rm_of_all_needs_a_yes(client: Client, url: str, tmp_path: Path) -> None:
    refused = subprocess.run(
        [*PROGRAM, "sessions", "rm", "--all"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment(url),
    )
    kept = ids(client)
    answers = [answer_on_terminal(url, answer) for answer in ("n", "y")]

    assert_fails(refused, 2, "--all deletes every session; add --yes.*")
    assert (kept, answers, ids(client)) == (["a1", "a2", "b"], [130, 0], [])
    assert run_program(tmp_path, "sessions", "rm", "--all", "--yes", url=url).stdout == "deleted 0 sessions\n"


def answer_on_terminal(url: str, answer: str) -> int:
    """Run `rm --all` with a terminal as stdin, and return its exit status after an answer."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "sessions", "rm", "--all"],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(url),
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    status = process.wait(60)
    os.close(ours)
    return status


def test_all_sessions_go_to_a_folder_and_come_back(client: Client, url: str, tmp_path: Path) -> None:
    exported = documents(run_program(tmp_path, "export", "--all", "backup", "--json", url=url))
    again = run_program(tmp_path, "export", "--all", "backup", url=url)
    forced = run_program(tmp_path, "sessions", "export", "a1", "b", "backup", "--force", url=url)
    client.session("a1").delete()
    files = sorted(map(str, tmp_path.glob("backup/*")))
    imported = run_program(tmp_path, "import", *files, url=url)

    assert [each["file"] for each in exported] == [f"backup/{name}.safetensors" for name in ("a1", "a2", "b")]
    assert (again.returncode, again.stderr.count("already exists; use --force")) == (1, 3)
    assert (forced.returncode, len(forced.stdout.splitlines())) == (0, 2)
    # The others exist still. The import goes on after them.
    assert (imported.returncode, imported.stderr.count("409 session-exists")) == (1, 2)
    assert imported.stdout.startswith("a1: 5 tokens")
    np.testing.assert_array_equal(client.session("a1").read(form="float16").k, K)


@pytest.mark.usefixtures("client")
def test_two_sessions_never_share_a_file(url: str, tmp_path: Path) -> None:
    (tmp_path / "a2.safetensors").symlink_to("a1.safetensors")

    finished = run_program(tmp_path, "export", "a1", "a2", ".", "--force", url=url)

    assert finished.returncode == 1
    assert "a2.safetensors: already exists" in finished.stderr


def test_session_goes_through_a_pipe(client: Client, url: str, tmp_path: Path) -> None:
    content = piped(tmp_path, url, "export", "a1", "-")

    told = piped(tmp_path, url, "import", "-", "--id", "copy", stdin=content)

    assert told.startswith(b"copy: 5 tokens, 2 layers, ")
    np.testing.assert_array_equal(client.session("copy").read(form="float16").v, V)
    assert list(tmp_path.iterdir()) == []


def test_session_is_imported_from_a_named_pipe(client: Client, url: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    client.session("a1").export(tmp_path / "file")
    command = 'cat file > pipe & exec "$0" -m hadakv_cli import pipe --id copy'

    finished = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env=environment(url),
    )

    assert (finished.returncode, finished.stderr) == (0, "")
    np.testing.assert_array_equal(client.session("copy").read(form="float16").v, V)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("command", ["export a1 out.safetensors", "get a1 out.safetensors", "get a1 out.npz"])
def test_file_that_cannot_be_completed_is_named_and_removed(url: str, tmp_path: Path, command: str) -> None:
    finished = subprocess.run(
        ["/bin/sh", "-c", f'ulimit -f 0; exec "$0" -m hadakv_cli {command}', sys.executable],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env=environment(url),
    )

    assert_fails(finished, 1, rf"{re.escape(str(tmp_path.resolve()))}/out\.\w+: File too large")
    assert list(tmp_path.iterdir()) == []


def save(path: Path, k: NDArray[Any], v: NDArray[Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, k=k, v=v)
    else:
        save_file({"k": k, "v": v}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_are_put_and_got(client: Client, url: str, tmp_path: Path, suffix: str) -> None:
    client.session("b").delete()
    client.session("b").create(codec=FLOAT16)
    file = save(tmp_path / f"in{suffix}", K, V)

    first, again = (run_program(tmp_path, "put", "b", file, "--position", 0, url=url) for _ in range(2))
    more = documents(run_program(tmp_path, "put", "b", file, "--json", url=url))
    got = run_program(tmp_path, "get", "b", f"out{suffix}", "--start", 5, "--stop", 9, url=url)

    assert first.stdout == again.stdout == "b: 5 tokens at 0\n"
    assert more == [{"session": "b", "position": 5, "tokens": 5, "length": 10}]
    assert re.fullmatch(rf"out{suffix}: tokens 5 to 9, \d\.\d KiB\n", got.stdout), got
    found: Any = np.load(tmp_path / "out.npz") if suffix == ".npz" else load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(found["k"], K[:, :, :4])
    np.testing.assert_array_equal(found["v"], V[:, :, :4])


def test_arrays_go_through_pipes(client: Client, url: str, tmp_path: Path) -> None:
    for flags in ((), ("--format", "safetensors", "--form", "bfloat16"), ("--form", "float32")):
        name = f"c{len(flags)}"
        piped(tmp_path, url, "put", name, "-", "--bits", "8", stdin=piped(tmp_path, url, "get", "a1", "-", *flags))

        codec = client.session(name).info().codec
        assert codec is not None
        assert codec.k.bits == 8
        np.testing.assert_allclose(client.session(name).read(form="float32").k, K, atol=0.1)


def test_bfloat16_is_written_as_it_is_read(client: Client, url: str, tmp_path: Path) -> None:
    run_program(tmp_path, "get", "a1", "out.safetensors", "--form", "bfloat16", url=url)

    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["k"], K.astype(bfloat16))
    assert client.session("a1").info().length == 5


def test_get_replaces_a_file_only_with_force(client: Client, url: str, tmp_path: Path) -> None:
    (tmp_path / "out.npz").write_text("other")

    refused = run_program(tmp_path, "get", "a1", "out.npz", url=url)
    missing = run_program(tmp_path, "get", "missing", "out.npz", "--force", url=url)
    kept = (tmp_path / "out.npz").read_text()
    forced = run_program(tmp_path, "get", "a1", "out.npz", "--force", url=url)

    assert_fails(refused, 1, "out.npz: already exists; use --force to replace it")
    assert_fails(missing, 1, ".*404 session-not-found.*")
    assert (kept, forced.returncode, [path.name for path in tmp_path.iterdir()]) == ("other", 0, ["out.npz"])
    assert ids(client) == ["a1", "a2", "b"]


def test_full_disk_behind_stdout_is_named(client: Client, url: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("Linux has it")
    for arguments in (("sessions", "ls"), ("sessions", "show", *ids(client)), ("get", "a1", "-")):
        with Path("/dev/full").open("w") as full:
            finished = subprocess.run(
                [*PROGRAM, *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=environment(url),
            )

        assert (finished.returncode, finished.stderr) == (1, "hadakv: standard output: No space left on device\n")


def test_status_shows_version_backend_and_budgets(client: Client, url: str, tmp_path: Path) -> None:
    lines = run_program(tmp_path, "status", url=url).stdout.splitlines()
    (document,) = documents(run_program(tmp_path, "status", "--json", url=url))

    shown = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert shown.keys() == {"version", "backend", "uptime", "sessions", "memory", "disk"}
    assert (shown["sessions"], shown["disk"]) == ("3", "disabled")
    assert shown["version"] == document["version"] == client.status().version
    assert document["budget_nbytes"] > document["used_nbytes"] > 0
    assert document["uptime_seconds"] > 0


def test_added_token_is_accepted_by_the_service(tmp_path: Path) -> None:
    added = run_program(tmp_path, "token", "add", "alice", "--quota", "4GiB", "--sessions", 1)
    (tmp_path / "tokens").write_text((tmp_path / "tokens").read_text().rstrip())
    (other,) = documents_of_stdout(run_program(tmp_path, "token", "add", "bob", "--json"))
    (tmp_path / "alice.token").write_text(added.stdout)

    with running_service("--token-file", str(tmp_path / "tokens")) as service:
        alice = run_program(tmp_path, "sessions", "ls", "--token-file", "alice.token", url=service.url)
        bob = run_program(tmp_path, "sessions", "ls", url=service.url, HADAKV_TOKEN=other["token"])

    assert (alice.returncode, bob.returncode, alice.stderr, bob.stderr) == (0, 0, "", "")
    first, second = (tmp_path / "tokens").read_text().splitlines()
    assert re.fullmatch(r"alice:[0-9a-f]{64} quota=4GiB sessions=1", first)
    assert re.fullmatch(r"bob:[0-9a-f]{64}", second)
    assert stat.S_IMODE((tmp_path / "tokens").stat().st_mode) == 0o600
    assert added.stdout.strip() not in first
    assert "not shown again" in added.stderr


def documents_of_stdout(finished: Finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_serve_runs_the_service_in_its_own_process(tmp_path: Path) -> None:
    program = ("-m", "hadakv_cli", "serve")

    with running_service("--data-dir", str(tmp_path / "data"), program=program) as service:
        told = run_program(tmp_path, "status", url=service.url)
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
        if sys.platform == "linux":
            assert children.read_text() == ""
        service.process.terminate()
        status = service.process.wait(30)

    assert (told.returncode, status) == (0, 0)
