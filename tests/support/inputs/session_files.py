"""Session files, parsed and built without code of the service, which could hide a mistake on both sides."""

import json
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.contract import Answer, Caller, Json

OCTETS = "application/octet-stream"
DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
DIGEST_NBYTES = 32


def exported(caller: Caller, session: str) -> bytes:
    """Export a session."""
    answer = caller.get(f"/sessions/{session}/export")
    assert answer.status == 200, answer
    return answer.content


def imported(caller: Caller, session: str, file: bytes) -> Answer:
    """Import a file; return the response."""
    return caller.send("POST", f"/sessions/{session}/import", file, OCTETS)


def taken_apart(file: bytes) -> tuple[Json, bytes]:
    """Return the header and the bytes of the tensors."""
    length = int.from_bytes(file[:8], "little")
    header: Json = json.loads(file[8 : 8 + length])
    return header, file[8 + length :]


def put_together(header: Any, data: bytes) -> bytes:
    """Build a file from a header, given as JSON value or as text."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def sealed(file: bytes) -> bytes:
    """Return a file of version 2 with the digest that belongs to its other bytes."""
    return file[:-DIGEST_NBYTES] + sha256(file[:-DIGEST_NBYTES]).digest()


def without_digest(file: bytes) -> bytes:
    """Return the bytes of the tensors of a file of version 2, except for the digest."""
    return taken_apart(file)[1][:-DIGEST_NBYTES]


def tensors(file: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file by name, except for the digest."""
    header, data = taken_apart(file)
    header.pop(METADATA)
    header.pop("digest", None)
    return {
        name: np.frombuffer(data[slice(*head["data_offsets"])], DTYPES[head["dtype"]]).reshape(head["shape"])
        for name, head in header.items()
    }


def metadata_of(file: bytes) -> Json:
    """Return the metadata of a file, with JSON values parsed."""
    strings = taken_apart(file)[0][METADATA]
    plain = ("format", "version", "tables", "session", "created")
    return {name: text if name in plain else json.loads(text) for name, text in strings.items()}


def by_layer(file: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors of each layer of a file of version 2, named as in version 1."""
    (group,) = metadata_of(file)["groups"]
    pages = tensors(file)
    found, first = {}, 0
    streams = {name.split(".pages.0.")[1] for name in pages if ".pages.0." in name}
    for run, span in enumerate(group["runs"]):
        count = -(-(span["length"] - span["base"]) // span["page_tokens"])
        for stream in sorted(streams) if count else ():
            parts = [pages[f"groups.0.runs.{run}.pages.{page}.{stream}"] for page in range(count)]
            joined = np.concatenate(parts, axis=2)
            found |= {f"layers.{first + layer}.{stream}": joined[layer] for layer in range(span["layers"])}
        first += span["layers"]
    return found


def as_version_1(file: bytes) -> bytes:
    """Return a file of version 2 as the previous version of the service wrote it."""
    header, _ = taken_apart(file)
    metadata = header[METADATA] | {"version": "1"}
    (group,) = json.loads(metadata.pop("groups"))
    runs = [{name: run[name] for name in ("layers", "base", "length")} for run in group["runs"]]
    metadata["runs"] = json.dumps(runs, separators=(",", ":"))
    found = by_layer(file)
    entries: Json = {METADATA: metadata}
    data, layer = b"", 0
    codecs = json.loads(metadata["codec"]) if runs else {}
    for run in runs:
        for _ in range(run["layers"]):
            for stream, codec in codecs.items():
                for part in ("values",) if codec["kind"] == "float16" else ("packed", "norms"):
                    name = f"layers.{layer}.{stream}.{part}"
                    array = found.get(name, _no_tokens(metadata, codec, part))
                    entries[name] = {
                        "dtype": NAMES[array.dtype],
                        "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + array.nbytes],
                    }
                    data += array.tobytes()
            layer += 1
    return put_together(entries, data)


def _no_tokens(metadata: Json, codec: Json, part: str) -> NDArray[Any]:
    """Return a tensor of a layer without tokens."""
    heads, head_dim = int(metadata["kv_heads"]), int(metadata["head_dim"])
    row_bytes = head_dim if codec["layout"] == "byte" else head_dim * codec["bits"] // 8
    width = {"values": head_dim, "packed": row_bytes, "norms": 2 if head_dim == 512 else 1}[part]
    dtype = {"values": np.float16, "packed": np.uint8, "norms": np.float32}[part]
    return np.empty((heads, 0, width), dtype)


def with_metadata(file: bytes, **changes: Any) -> bytes:
    """Return the file with changed metadata. None removes a field; other values than strings become JSON."""
    header, data = taken_apart(file)
    strings = header[METADATA]
    for name, value in changes.items():
        if value is None:
            strings.pop(name, None)
        else:
            strings[name] = value if isinstance(value, str) else json.dumps(value)
    return put_together(header, data)


def with_tensor(file: bytes, name: str, array: NDArray[Any]) -> bytes:
    """Return the file with other elements in one tensor, of the same dtype and shape."""
    header, data = taken_apart(file)
    begin, end = header[name]["data_offsets"]
    assert end - begin == array.nbytes
    return put_together(header, data[:begin] + array.tobytes() + data[end:])
