"""Files of version 2 that were damaged or changed are rejected, and nothing is stored."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from hadakv_service.operations.files.layout import MAX_HEADER_NBYTES
from hadakv_service.testing import running_service
from support.assertions import assert_names_field
from support.contract import Caller, Json
from support.inputs.arrays import pair
from support.inputs.session_files import (
    METADATA,
    OCTETS,
    exported,
    imported,
    metadata_of,
    put_together,
    sealed,
    taken_apart,
    tensors,
    with_metadata,
    with_tensor,
)

PAGE = "groups.0.runs.0.pages.0"


@pytest.fixture(scope="module")
def target() -> Iterator[Caller]:
    """Service that only this module uses, with one session."""
    with running_service("--memory-budget", "16MiB", "--max-body", "4MiB") as service, Caller(service.url) as caller:
        caller.append("original", *pair(2, 2, 300), codec={"k": {"bits": 3, "layout": "byte"}, "v": {"bits": 4}})
        caller.append("original", *pair(1, 2, 3), layer=3)
        yield caller


@pytest.fixture(scope="module")
def file(target: Caller) -> bytes:
    return exported(target, "original")


@pytest.fixture(autouse=True)
def _nothing_changes(target: Caller) -> Iterator[None]:
    """Check that the sessions and the bytes they use are the same after the block."""
    before = target.used_nbytes(), names(target)
    yield
    assert (target.used_nbytes(), names(target)) == before


def names(caller: Caller) -> list[str]:
    return [session["session"] for session in caller.get("/sessions").body["sessions"]]


def flipped(file: bytes, at: int) -> bytes:
    """Return the file with one other bit."""
    changed = bytearray(file)
    changed[at] ^= 1
    return bytes(changed)


def start_of(file: bytes, tensor: str) -> int:
    """Return the position of a tensor in the file."""
    header, _ = taken_apart(file)
    start: int = header[tensor]["data_offsets"][0]
    return 8 + int.from_bytes(file[:8], "little") + start


# Damage


@pytest.mark.parametrize("tensor", [f"{PAGE}.{stream}.{part}" for stream in "kv" for part in ("packed", "norms")])
def test_flipped_bit_in_a_tensor_is_file_corrupt(target: Caller, file: bytes, tensor: str) -> None:
    rejected = imported(target, "new", flipped(file, start_of(file, tensor) + 5))

    assert "SHA-256" in rejected.problem(422, "file-corrupt")["detail"]


def test_flipped_bits_anywhere_are_rejected(target: Caller, file: bytes) -> None:
    header_end = start_of(file, f"{PAGE}.k.packed")
    places = [
        *range(0, header_end, 7),
        *range(header_end, len(file), len(file) // 200),
        *range(len(file) - 33, len(file)),
    ]

    statuses = {imported(target, "new", flipped(file, at)).status for at in places}

    assert statuses == {400, 422}


def test_flipped_bit_of_a_free_text_is_file_corrupt(target: Caller, file: bytes) -> None:
    at = file.index(b'"session":"original"') + len(b'"session":"')

    imported(target, "new", flipped(file, at)).problem(422, "file-corrupt")


def test_damage_that_makes_values_invalid_is_file_corrupt(target: Caller, file: bytes) -> None:
    norms = tensors(file)[f"{PAGE}.k.norms"].copy()
    norms[0, 0, 0] = np.nan

    imported(target, "new", with_tensor(file, f"{PAGE}.k.norms", norms)).problem(422, "file-corrupt")


@pytest.mark.parametrize("page", ["groups.0.runs.0.pages.0", "groups.0.runs.2.pages.0"])
def test_zeroed_page_is_file_corrupt(target: Caller, file: bytes, page: str) -> None:
    header, _ = taken_apart(file)
    start, stop = (header[f"{page}.{part}"]["data_offsets"][i] for i, part in enumerate(("k.packed", "v.norms")))
    at = 8 + int.from_bytes(file[:8], "little")
    zeroed = file[: at + start] + bytes(stop - start) + file[at + stop :]

    imported(target, "new", zeroed).problem(422, "file-corrupt")


def test_edited_header_of_matching_length_is_file_corrupt(target: Caller, file: bytes) -> None:
    for change in ({"session": "other"}, {"ttl_seconds": 5.0}, {"created": "2020-01-01T00:00:00Z"}):
        imported(target, "new", with_metadata(file, **change)).problem(422, "file-corrupt")


def test_truncated_and_longer_files_are_malformed(target: Caller, file: bytes) -> None:
    header_end = start_of(file, f"{PAGE}.k.packed")
    lengths = (0, 7, 8, 100, header_end - 1, header_end, header_end + 1, len(file) - 33, len(file) - 32, len(file) - 1)
    for changed in (*(file[:length] for length in lengths), file + b"\0", file + file):
        imported(target, "new", changed).problem(400, "malformed-body")


def test_chunked_files_of_another_length_are_malformed(target: Caller, file: bytes) -> None:
    """Without a Content-Length the length is known at the end only."""
    for changed in (file[:-1], file[:-32], file[: len(file) // 2], file[:50], file + b"\0"):
        pieces = (changed[start : start + 1000] for start in range(0, len(changed), 1000))
        response = target.http.post("/sessions/new/import", content=pieces, headers={"content-type": OCTETS})

        assert (response.status_code, response.json()["type"]) == (400, "urn:hadakv:problem:malformed-body")


# Changed files with a digest that fits

Change = Callable[[Json], Any]


def changed_header(file: bytes, change: Change) -> bytes:
    """Return a file with a changed header and the digest that belongs to it."""
    header, data = taken_apart(file)
    replacement = change(header)
    return sealed(put_together(header if replacement is None else replacement, data))


def moved(*tensors: str, by: int) -> Change:
    """Return a change of the offsets of tensors."""

    def change(header: Json) -> None:
        for tensor in tensors:
            header[tensor]["data_offsets"] = [offset + by for offset in header[tensor]["data_offsets"]]

    return change


def swapped(header: Json) -> None:
    """Let two tensors of the same size change places."""
    a, b = (header[f"groups.0.runs.0.pages.0.{stream}.norms"] for stream in "kv")
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def digest_first(header: Json) -> Json:
    """Let the digest be first in the file."""
    for name, entry in header.items():
        if name != METADATA:
            entry["data_offsets"] = [offset + 32 for offset in entry["data_offsets"]]
    header["digest"]["data_offsets"] = [0, 32]
    return header


def run(**changes: Any) -> Change:
    """Return a change of the first run in the metadata."""

    def change(header: Json) -> None:
        groups = json.loads(header[METADATA]["groups"])
        groups[0]["runs"][0] |= changes
        header[METADATA]["groups"] = json.dumps(groups)

    return change


def groups(value: Any) -> Change:
    """Return a change of the groups in the metadata."""
    return lambda header: header[METADATA].update(groups=json.dumps(value))


CHANGES: dict[str, tuple[Change, str, str]] = {
    "no digest": (lambda header: header.pop("digest") and header, "digest", "is missing"),
    "digest not last": (digest_first, f"{PAGE}.k.packed.data_offsets", "must begin at 0, not at 32"),
    "digest of another type": (
        lambda header: header["digest"].update(dtype="F32", shape=[8]),
        "digest.dtype",
        "must be U8, not 'F32'",
    ),
    "longer digest": (
        lambda header: header["digest"].update(shape=[64]),
        "digest.shape",
        "must be [32], not [64]",
    ),
    "pages in another order": (swapped, f"{PAGE}.k.norms.data_offsets", "must begin at"),
    "a gap": (moved("digest", by=1), "digest.data_offsets", "must begin at"),
    "an overlap": (moved(f"{PAGE}.v.packed", by=-4), f"{PAGE}.v.packed.data_offsets", "must begin at"),
    "a page too many": (
        lambda header: header.update({"groups.0.runs.0.pages.9.k.packed": header["digest"]}),
        "header",
        "that the session does not have",
    ),
    "a tensor of a later version": (lambda header: header.update(tokens=header["digest"]), "header", "'tokens'"),
    "a key of a later version": (lambda header: header[METADATA].update(meta="{}"), f"{METADATA}.meta", "is not known"),
    "a group of a later version": (
        groups([{"runs": [], "layers": [0]}]),
        f"{METADATA}.groups[0].layers",
        "is not known",
    ),
    "no groups": (groups([]), f"{METADATA}.groups", "length >= 1"),
    "two groups": (groups([{"runs": []}] * 2), f"{METADATA}.groups", "length <= 1"),
    "pages that are not whole": (run(page_tokens=300), f"{METADATA}.groups[0].runs[0].page_tokens", "multiple of 256"),
    "pages without tokens": (run(page_tokens=0), f"{METADATA}.groups[0].runs[0].page_tokens", ">= 256"),
    "other pages": (run(page_tokens=256), f"{PAGE}.k.packed.shape", "must be [2, 2, 256, 64]"),
    "more tokens": (run(length=2**40), f"{PAGE}.k.packed.shape", "must be [2, 2, 2304, 64]"),
    "huge pages": (run(length=2**40, page_tokens=2**40), f"{METADATA}.groups[0].runs[0].page_tokens", "the maximum is"),
    "more pages": (
        run(length=2**48, page_tokens=256),
        f"{PAGE}.k.packed.shape",
        "must be [2, 2, 256, 64], not [2, 2, 300, 64]",
    ),
    "more layers": (run(layers=1000), f"{PAGE}.k.packed.shape", "must be [1000, 2, 300, 64]"),
}


@pytest.mark.parametrize(("change", "field", "reason"), CHANGES.values(), ids=CHANGES)
def test_changed_file_with_a_digest_is_rejected_by_field(
    target: Caller, file: bytes, change: Change, field: str, reason: str
) -> None:
    rejected = imported(target, "new", changed_header(file, change))

    first = rejected.problem(422, "invalid-request")["errors"][0]
    assert first["field"] == field, first
    assert reason in first["reason"], first


def test_invalid_values_with_a_digest_are_rejected_by_field(target: Caller, file: bytes) -> None:
    norms = tensors(file)[f"{PAGE}.k.norms"].copy()
    norms[1, 0, 280] = np.nan

    rejected = imported(target, "new", sealed(with_tensor(file, f"{PAGE}.k.norms", norms)))

    assert_names_field(rejected, f"{PAGE}.k.norms")
    assert "at layer 1 of the run, head 0, token 280; nothing was stored" in rejected.body["detail"]


def test_file_saved_by_safetensors_library_is_rejected_by_order(target: Caller, file: bytes) -> None:
    """The library sorts tensors by type, so that neither pages nor the digest are where they belong."""
    metadata = taken_apart(file)[0][METADATA]

    rejected = imported(target, "new", safetensors.numpy.save(safetensors.numpy.load(file), metadata))

    assert "data_offsets" in rejected.problem(422, "invalid-request")["errors"][0]["field"]


def test_huge_header_claim_is_malformed(target: Caller, file: bytes) -> None:
    for length in (MAX_HEADER_NBYTES + 1, 1 << 40, (1 << 64) - 1):
        imported(target, "new", length.to_bytes(8, "little") + file[8:]).problem(400, "malformed-body")


# Files that are imported


def test_other_json_of_the_same_header_is_accepted(target: Caller, file: bytes) -> None:
    header, data = taken_apart(file)
    reordered = dict(reversed(header.items()))
    text = json.dumps(reordered, indent=1).encode()

    assert imported(target, "new", sealed(put_together(text, data))).status == 201
    assert metadata_of(exported(target, "new"))["groups"] == metadata_of(file)["groups"]
    assert target.delete("/sessions/new").status == 204


def test_other_page_sizes_are_accepted(target: Caller, file: bytes) -> None:
    """A later version may write pages of another size."""
    header, data = taken_apart(file)
    pages = tensors(file)
    changed: Json = {METADATA: header[METADATA]}
    run(page_tokens=256)(changed)
    parts = [(f"{stream}.{part}", header[f"{PAGE}.{stream}.{part}"]) for stream in "kv" for part in ("packed", "norms")]
    at, written = 0, b""
    for index, tokens in enumerate((slice(0, 256), slice(256, 300))):
        for run_index in (0, 2) if index == 0 else (0,):
            for name, entry in parts:
                tensor = pages[f"groups.0.runs.{run_index}.pages.0.{name}"]
                tensor = np.ascontiguousarray(tensor[:, :, tokens])
                changed[f"groups.0.runs.{run_index}.pages.{index}.{name}"] = entry | {
                    "shape": list(tensor.shape),
                    "data_offsets": [at, at + tensor.nbytes],
                }
                at, written = at + tensor.nbytes, written + tensor.tobytes()
    changed["digest"] = header["digest"] | {"data_offsets": [at, at + 32]}

    assert imported(target, "new", sealed(put_together(changed, written + bytes(32)))).status == 201
    assert taken_apart(exported(target, "new"))[1][:-32] == data[:-32]
    assert target.delete("/sessions/new").status == 204


def test_file_above_max_body_is_imported(target: Caller) -> None:
    for _ in range(4):
        target.append("large", *pair(2, 2, 1100, 128), codec={"kind": "float16"})
    large = exported(target, "large")
    target.delete("/sessions/large")

    assert len(large) > 4 << 20
    answer = imported(target, "new", large)

    assert answer.status == 201
    assert "warning" not in answer.headers
    assert target.delete("/sessions/new").status == 204
