"""ExistingLayers: the layers to read of a session in which some layers were never appended to."""

from bisect import bisect_left
from dataclasses import replace
from typing import NamedTuple

from hadakv_service.sessions.session import Session


class ExistingLayers(NamedTuple):
    """The layers of a range that exist.

    Attributes:
        session: the session without gaps: each layer has the index of its place among those that exist.
        places: first layer of the range in `session`, and layer after the last.
        numbers: index in the model of each layer of the range.
    """

    session: Session
    places: tuple[int, int]
    numbers: list[int]


def existing_layers(session: Session, layers: tuple[int, int] | None) -> ExistingLayers:
    """Return the layers of a range that exist.

    Args:
        session: the session.
        layers: first layer, and layer after the last; None for all.

    Raises:
        InvalidRequest: the range is not within the stored layers.
    """
    a, b = session.layer_range(layers)
    if not any(run.is_gap for run in session.runs):
        return ExistingLayers(session, (a, b), list(range(a, b)))
    numbers = [layer for layer, _, _ in session.spans()]
    first, stop = bisect_left(numbers, a), bisect_left(numbers, b)
    compact = replace(session, runs=tuple(run for run in session.runs if not run.is_gap))
    return ExistingLayers(compact, (first, stop), numbers[first:stop])
