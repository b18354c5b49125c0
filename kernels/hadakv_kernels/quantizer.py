"""A way to find a value's index with one lookup and one comparison, proved for each codebook.

The range of the boundaries is cut into cells of one width, so narrow that none has two boundaries. A multiplication
then says which cell a value is in, the cell how many boundaries lie below it and which one, if any, lies within, and a
comparison with that one gives the index. It is exact, not an approximation: boundaries close to the edge of a cell
belong to both sides, and `Quantizer` refuses cells that could lead to a wrong boundary.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import tables

# Cells of each width, counted without the first; encode.msl knows them too. Found by trying.
CELLS = {2: 4, 3: 8, 4: 16, 5: 40, 6: 102, 8: 506}
# How far, in cells, rounding may send a value from where it belongs: three roundings to 24 bits at up to 506 cells.
SLACK = 506 * 3 * 2.0**-24


@dataclass(frozen=True)
class Quantizer:
    """The cells of a codebook.

    Attributes:
        scale: a value times this, plus one half, clamped to 0..1, times `CELLS` and rounded is its cell.
        boundary: float32 `[cells + 1]`, the boundary within each cell, infinity where there is none.
        below: int `[cells + 1]`, how many boundaries lie below that one, or below the cell.

    Raises:
        ValueError: a cell would need two boundaries.
    """

    scale: np.float32
    boundary: NDArray[np.float32]
    below: NDArray[np.int64]


def fit(boundaries: NDArray[np.float32], cells: int, scale: np.float32) -> Quantizer:
    """The cells of one scale."""
    positions = (boundaries.astype(np.float64) * float(scale) + 0.5) * cells
    boundary = np.full(cells + 1, np.inf, np.float32)
    # Of cells without a boundary of their own: those whose values are surely beyond it.
    below = np.searchsorted(positions, np.arange(cells + 1) - 0.5)
    taken = np.zeros(cells + 1, bool)
    for index, position in enumerate(positions):
        for cell in {round(position - 2 * SLACK), round(position + 2 * SLACK)}:
            if not 0 <= cell <= cells or taken[cell]:
                raise ValueError(f"boundary {index} has no cell of its own")
            taken[cell], boundary[cell], below[cell] = True, boundaries[index], index
    return Quantizer(scale, boundary, below)


@cache
def quantizer(bits: int, codebook: str) -> Quantizer:
    """The cells of a codebook, at the first scale that gives each boundary cells of its own."""
    boundaries = tables.boundaries(bits, codebook)
    for stretch in np.linspace(1, 1.25, 200):
        try:
            return fit(boundaries, CELLS[bits], np.float32(0.5 / (float(boundaries[-1]) * stretch)))
        except ValueError:
            continue
    raise ValueError(f"no {CELLS[bits]} cells for the codebook {codebook} of {bits} bits")
