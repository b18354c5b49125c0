"""Check that bytes are exactly one msgpack value, without building it."""

from hadakv_service.errors import MalformedBody

MAX_DEPTH = 16
MAX_ITEMS = 4096


def check_well_formed(body: memoryview) -> None:
    """Check the structure of a msgpack value. Only needed for a body that has failed validation.

    Raises:
        MalformedBody: the value is truncated, followed by other bytes, nested deeper than `MAX_DEPTH`, or has more than
            `MAX_ITEMS` items.
    """
    offset, open_items = 0, [1]
    for _ in range(MAX_ITEMS):
        while open_items and open_items[-1] == 0:
            open_items.pop()
        if not open_items:
            break
        open_items[-1] -= 1
        offset, children = _skip_one(body, offset)
        if children:
            open_items.append(children)
        if len(open_items) > MAX_DEPTH:
            raise MalformedBody(f"The body is nested deeper than {MAX_DEPTH} levels.")
    else:
        raise MalformedBody(f"The body has more than {MAX_ITEMS} items.")
    if offset != len(body):
        raise MalformedBody("The body has bytes after its end.")


# First byte -> size of the length field, other header bytes, items per count (None: the length counts bytes).
_SIZED = {
    **{code: (1 << (code - 0xC4), 0, None) for code in (0xC4, 0xC5, 0xC6)},
    **{code: (1 << (code - 0xC7), 1, None) for code in (0xC7, 0xC8, 0xC9)},
    **{code: (1 << (code - 0xD9), 0, None) for code in (0xD9, 0xDA, 0xDB)},
    **{code: (2 << (code - 0xDC), 0, 1) for code in (0xDC, 0xDD)},
    **{code: (2 << (code - 0xDE), 0, 2) for code in (0xDE, 0xDF)},
}
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}
_FIXED |= {0xCC + i: 1 << i for i in range(4)} | {0xD0 + i: 1 << i for i in range(4)}
_FIXED |= {0xD4 + i: 1 + (1 << i) for i in range(5)}


def _skip_one(body: memoryview, offset: int) -> tuple[int, int]:
    """Skip one item. Return the offset after its header and bytes, and the number of items that it contains."""
    if offset >= len(body):
        raise MalformedBody("The body is truncated.")
    code, end, children = body[offset], offset + 1, 0
    if code in _SIZED:
        width, extra, per_item = _SIZED[code]
        count = int.from_bytes(body[end : end + width], "big")
        end += width + extra + (count if per_item is None else 0)
        children = count * (per_item or 0)
    elif 0x80 <= code < 0xA0:
        children = (code & 15) * (2 if code < 0x90 else 1)
    elif 0xA0 <= code < 0xC0:
        end += code & 31
    elif 0x80 <= code < 0xE0:
        if code not in _FIXED:
            raise MalformedBody(f"The body has the byte {code:#x} where a value should start.")
        end += _FIXED[code]
    if end > len(body):
        raise MalformedBody("The body is truncated.")
    return end, children
