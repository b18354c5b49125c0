"""Mutated files are rejected or imported, and rejected ones leave nothing behind."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from hadakv_service.testing import running_service
from support.backends import assert_same_bits
from support.contract import Caller, Json
from support.inputs.arrays import pair
from support.inputs.session_files import (
    METADATA,
    as_version_1,
    exported,
    imported,
    metadata_of,
    put_together,
    sealed,
    taken_apart,
    tensors,
)
from support.thoroughness import examples

FLIPS = examples(1_000, exhaustive=3_000)
WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63,
    2**64,
    0.5,
    "",
    "0",
    "F32",
    "x" * 300,
    [],
    [0],
    {},
    {"k": {}},
]


@pytest.fixture(scope="module")
def target() -> Iterator[Caller]:
    """Service used by this module only, with one session."""
    with running_service("--memory-budget", "64MiB") as service, Caller(service.url) as caller:
        yield caller


@pytest.fixture(scope="module")
def paged(target: Caller) -> bytes:
    """Return a small file of version 2 that uses every feature of the format."""
    codec = {"k": {"bits": 3, "layout": "byte", "d512_scale": 0.5}, "v": {"kind": "float16"}}
    target.put("/sessions/original", {"codec": codec, "window": 9, "layers": 7, "ttl_seconds": 1e6})
    target.append("original", *pair(2, 1, 3))
    target.append("original", *pair(1, 1, 1), layer=3)
    return exported(target, "original")


@pytest.fixture(scope="module")
def file(paged: bytes) -> bytes:
    """Return the same file in version 1, which has no digest that would reject every mutation."""
    return as_version_1(paged)


@pytest.fixture(autouse=True)
def _nothing_is_left(target: Caller, paged: bytes) -> Iterator[None]:
    """Check that the sessions and the bytes they use are the same after the block."""
    before = everything(target)
    yield
    assert everything(target) == before
    assert exported(target, "original") == paged


def everything(caller: Caller) -> tuple[int, list[str]]:
    return caller.used_nbytes(), [session["session"] for session in caller.get("/sessions").body["sessions"]]


def outcome(caller: Caller, mutated: bytes) -> int:
    """Import a file and return the status. A session that was created must equal the file, and is deleted."""
    response = imported(caller, "new", mutated)
    if response.status == 201:
        held = exported(caller, "new")
        if metadata_of(mutated)["version"] == "1":
            held = as_version_1(held)
        assert_says_all_of(
            described(held), {**described(mutated), "session": "new", "created": metadata_of(held)["created"]}
        )
        for name, tensor in tensors(mutated).items():
            assert_same_bits(tensors(held)[name], tensor)
        assert caller.get("/sessions/new/kv", form="float32").status == 200
        assert caller.delete("/sessions/new").status == 204
    else:
        assert response.status in (400, 422), (response, mutated)
        assert response.body["detail"]
    return response.status


def described(file: bytes) -> Json:
    """Return the metadata of a file, without the size of its pages and without layers that have no tokens.

    The size may differ, and an import adds declared layers that the file leaves out.
    """
    metadata = metadata_of(file)
    for group in metadata.get("groups", []):
        group["runs"] = [run for run in group["runs"] if run["base"] < run["length"]]
        for run in group["runs"]:
            del run["page_tokens"]
    return metadata


def assert_says_all_of(mine: Any, theirs: Any) -> None:
    """Check that one file's metadata is contained in another's, which may add defaults."""
    if isinstance(theirs, dict):
        for name, value in theirs.items():
            if value is not None:
                # A factor of 1 may be omitted.
                assert_says_all_of(mine.get(name, 1), value)
    else:
        assert mine == theirs


def test_flipped_bits_are_rejected_or_accepted(target: Caller, file: bytes) -> None:
    rng = random.Random(1)
    end = 8 + int.from_bytes(file[:8], "little")
    statuses: Counter[int] = Counter()

    for _ in range(FLIPS):
        mutated = bytearray(file)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            # Positions in the first bytes, in the header, anywhere.
            mutated[rng.randrange(rng.choice([8, end, len(file)]))] ^= 1 << rng.randrange(8)
        statuses[outcome(target, bytes(mutated))] += 1

    assert statuses.total() == FLIPS
    assert set(statuses) <= {201, 400, 422}
    assert min(statuses.values()) > FLIPS / 100, f"the files are one-sided: {statuses}"


def test_truncated_file_is_rejected(target: Caller, file: bytes) -> None:
    header, _ = taken_apart(file)
    start = 8 + int.from_bytes(file[:8], "little")
    borders = {start + offset for name, head in header.items() if name != METADATA for offset in head["data_offsets"]}
    lengths = {border + d for border in {0, 8, start, *borders} for d in (-1, 0, 1)} | set(range(0, len(file), 23))

    statuses = {outcome(target, file[:length]) for length in lengths if 0 <= length < len(file)}

    assert statuses == {400}


def test_inserted_and_removed_bytes_are_handled(target: Caller, file: bytes) -> None:
    rng = random.Random(2)
    statuses: Counter[int] = Counter()

    for _ in range(500):
        at, count = rng.randrange(len(file)), rng.randint(1, 9)
        put_in = file[:at] + rng.randbytes(count) + file[at:]
        left_out = file[:at] + file[at + count :]
        statuses.update(outcome(target, mutated) for mutated in (put_in, left_out))

    # The padding of the header has space for a few more bytes.
    assert set(statuses) <= {400, 422}
    assert statuses[400] > 900


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a document with each of its keys or indices."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield value, key
        yield from places(part)


def lies(document: Json) -> Iterator[Json]:
    """Yield the document with each value, at every depth, replaced by each wrong one, removed, and duplicated."""
    for index in range(sum(1 for _ in places(document))):
        for wrong in WRONG:
            copy = json.loads(json.dumps(document))
            holder, key = list(places(copy))[index]
            holder[key] = wrong
            yield copy
        copy = json.loads(json.dumps(document))
        holder, key = list(places(copy))[index]
        del holder[key]
        yield copy


def test_every_wrong_header_field_is_rejected(target: Caller, file: bytes) -> None:
    header, data = taken_apart(file)

    statuses = Counter(outcome(target, put_together(lie, data)) for lie in lies(header))

    assert set(statuses) <= {201, 400, 422}
    # Few changes are valid, for example any window larger than the stored tokens.
    assert statuses[201] < statuses.total() / 50, statuses


def test_every_wrong_metadata_field_is_rejected(target: Caller, file: bytes) -> None:
    header, data = taken_apart(file)
    plain = metadata_of(file)
    statuses: Counter[int] = Counter()

    for lie in lies(plain):
        strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in lie.items()}
        statuses[outcome(target, put_together({**header, METADATA: strings}, data))] += 1

    assert set(statuses) <= {201, 400, 422}
    assert statuses[201] < statuses.total() / 4, statuses


def test_every_wrong_field_is_rejected_in_spite_of_a_digest(target: Caller, paged: bytes) -> None:
    header, data = taken_apart(paged)
    plain = metadata_of(paged)
    statuses = Counter(outcome(target, sealed(put_together(lie, data))) for lie in lies(header))

    for lie in lies(plain):
        strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in lie.items()}
        statuses[outcome(target, sealed(put_together({**header, METADATA: strings}, data)))] += 1

    assert set(statuses) <= {201, 400, 422}
    assert statuses[201] < statuses.total() / 8, statuses


def test_files_of_random_bytes_are_rejected(target: Caller) -> None:
    rng = random.Random(3)
    headers = (rng.randbytes(rng.choice([0, 1, 2, 10, 1000])) for _ in range(300))

    statuses = {
        outcome(target, put_together(random_header, rng.randbytes(rng.choice([0, 100])))) for random_header in headers
    }

    assert statuses == {400}
