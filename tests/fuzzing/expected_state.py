"""Expected content of a session: exactly what the responses to appends have acknowledged."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.contract import Json, array

# Rows `[kv_heads, tokens, ...]` of one layer, by stream and part: ("k", "packed"), ("v", "norms") and so on.
Rows = dict[tuple[str, str], NDArray[Any]]


class Contradiction(AssertionError):
    """A response that contradicts earlier responses."""


class ExpectedSession:
    """Expected content of one session."""

    def __init__(self, layers: dict[int, Rows] | None = None) -> None:
        self._layers: dict[int, Rows] = dict(layers or {})

    def length(self, layer: int) -> int:
        """Return the number of tokens of a layer."""
        rows = self._layers.get(layer, {})
        return next((part.shape[1] for part in rows.values()), 0)

    def append(self, first: int, answer: Json) -> None:
        """Record the response to an append: new tokens, or a repetition.

        Raises:
            Contradiction: the tokens are neither at the end, nor equal to those stored there.
        """
        for index, rows in enumerate(_by_layer(answer)):
            layer, position = first + index, answer["position"]
            stop = position + answer["tokens"]
            if position == self.length(layer):
                self._layers[layer] = _joined(self._layers.get(layer), rows)
            elif stop > self.length(layer):
                raise Contradiction(f"layer {layer} has {self.length(layer)} tokens, an append went to {position}")
            else:
                self._check(layer, position, rows)

    def check(self, answer: Json) -> None:
        """Compare the response to a read of packed layers.

        Raises:
            Contradiction: the content differs from what was acknowledged.
        """
        for layer, rows in zip(answer["layers"], _by_layer(answer), strict=True):
            self._check(layer, answer["start"], rows)
            if answer["stop"] > self.length(layer):
                raise Contradiction(f"layer {layer} returned tokens up to {answer['stop']}")

    def _check(self, layer: int, position: int, rows: Rows) -> None:
        mine = self._layers.get(layer, {})
        for name, part in rows.items():
            tokens = part.shape[1]
            stored = mine[name][:, position : position + tokens] if name in mine else part[:, :0]
            if tokens and not (stored.shape == part.shape and stored.tobytes() == part.tobytes()):
                raise Contradiction(f"layer {layer} from {position}: {name} is not what was stored")

    def truncated(self, length: int | None) -> "ExpectedSession":
        """Return the content truncated to a length; all of it for None."""
        return ExpectedSession(
            {layer: {name: part[:, :length] for name, part in rows.items()} for layer, rows in self._layers.items()}
        )


def _by_layer(answer: Json) -> list[Rows]:
    parts = {(stream, name): array(tensor) for stream in "kv" for name, tensor in (answer[stream] or {}).items()}
    layers = next((len(part) for part in parts.values()), 0)
    return [{name: part[layer] for name, part in parts.items()} for layer in range(layers)]


def _joined(old: Rows | None, new: Rows) -> Rows:
    # An empty layer has no rows yet, so its shape is not known.
    if old is None or all(part.shape[1] == 0 for part in old.values()):
        return new
    return {name: np.concatenate([old[name], part], 1) for name, part in new.items()}
