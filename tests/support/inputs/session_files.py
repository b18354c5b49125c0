"""Session files, parsed and built without code of the service, which could hide a mistake on both sides."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.contract import Answer, Caller, Json

OCTETS = "application/octet-stream"
DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}
METADATA = "__metadata__"


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


def tensors(file: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file by name."""
    header, data = taken_apart(file)
    header.pop(METADATA)
    return {
        name: np.frombuffer(data[slice(*head["data_offsets"])], DTYPES[head["dtype"]]).reshape(head["shape"])
        for name, head in header.items()
    }


def told(file: bytes) -> Json:
    """Return the metadata of a file, with JSON values parsed."""
    strings = taken_apart(file)[0][METADATA]
    plain = ("format", "version", "tables", "session", "created")
    return {name: text if name in plain else json.loads(text) for name, text in strings.items()}


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
