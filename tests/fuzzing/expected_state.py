"""What a session must hold: all that was acknowledged, and nothing else. Kept from the answers to appends."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.contract import Json, array

# Rows `[kv_heads, tokens, ...]` of one layer, by stream and part: ("k", "packed"), ("v", "norms") and so on.
Rows = dict[tuple[str, str], NDArray[Any]]


class Contradiction(AssertionError):
    """The service answered what cannot be."""


class Held:
    """One session."""

    def __init__(self, layers: dict[int, Rows] | None = None) -> None:
        self._layers: dict[int, Rows] = dict(layers or {})

    def length(self, layer: int) -> int:
        """Tokens of a layer."""
        rows = self._layers.get(layer, {})
        return next((part.shape[1] for part in rows.values()), 0)

    def append(self, first: int, answer: Json) -> None:
        """Take in what an append answered: new tokens, or once more what was there.

        Raises:
            Contradiction: it went neither to the end, nor is it what was stored there.
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

    def check(self, first: int, answer: Json) -> None:
        """Compare what a read of packed layers from `first` on answered.

        Raises:
            Contradiction: it is not what was acknowledged.
        """
        for index, rows in enumerate(_by_layer(answer)):
            self._check(first + index, answer["start"], rows)
            if answer["stop"] > self.length(first + index):
                raise Contradiction(f"layer {first + index} answers for tokens up to {answer['stop']}")

    def _check(self, layer: int, position: int, rows: Rows) -> None:
        mine = self._layers.get(layer, {})
        for name, part in rows.items():
            tokens = part.shape[1]
            stored = mine[name][:, position : position + tokens] if name in mine else part[:, :0]
            if tokens and not (stored.shape == part.shape and stored.tobytes() == part.tobytes()):
                raise Contradiction(f"layer {layer} from {position} on is not what was stored there: {name}")

    def truncated(self, length: int | None) -> "Held":
        """A session of the first tokens, or all."""
        return Held(
            {layer: {name: part[:, :length] for name, part in rows.items()} for layer, rows in self._layers.items()}
        )


def _by_layer(answer: Json) -> list[Rows]:
    parts = {(stream, name): array(tensor) for stream in "kv" for name, tensor in (answer[stream] or {}).items()}
    layers = next((len(part) for part in parts.values()), 0)
    return [{name: part[layer] for name, part in parts.items()} for layer in range(layers)]


def _joined(old: Rows | None, new: Rows) -> Rows:
    # An empty layer has no rows yet, whatever it is to have.
    if old is None or all(part.shape[1] == 0 for part in old.values()):
        return new
    return {name: np.concatenate([old[name], part], 1) for name, part in new.items()}
