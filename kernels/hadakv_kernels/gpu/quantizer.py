"""Cell grid that finds a value's index with one lookup and one comparison, checked for each codebook.

The range of the boundaries is divided into cells of equal width, narrow enough that no cell contains two boundaries. A
multiplication gives the cell of a value. The cell gives the number of boundaries below it and the boundary inside it,
if there is one. A comparison with that boundary gives the index. The result is exact: boundaries close to the edge of a
cell are entered on both sides, and `fit` rejects grids that could give a wrong index.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import tables

# Number of cells for each number of bits, without the first cell. Found by trial. codec.msl has the same numbers.
CELLS = {2: 4, 3: 8, 4: 16, 5: 40, 6: 102, 8: 506}
# Maximum rounding error of a position, in cells: three roundings to 24 bits at up to 506 cells.
SLACK = 506 * 3 * 2.0**-24


@dataclass(frozen=True)
class Quantizer:
    """Cell grid of a codebook.

    Attributes:
        scale: factor of a value. The cell of v is `round(clamp(v * scale + 0.5, 0, 1) * CELLS[bits])`.
        boundary: float32 `[cells + 1]`, the boundary inside each cell, or infinity.
        below: int `[cells + 1]`, the number of boundaries below that boundary, or below the cell if it has none.
    """

    scale: np.float32
    boundary: NDArray[np.float32]
    below: NDArray[np.int64]


def fit(boundaries: NDArray[np.float32], cells: int, scale: np.float32) -> Quantizer:
    """Fill the cells for one scale.

    Raises:
        ValueError: a cell would contain two boundaries.
    """
    positions = (boundaries.astype(np.float64) * float(scale) + 0.5) * cells
    boundary = np.full(cells + 1, np.inf, np.float32)
    # Cells without a boundary: count the boundaries that are certainly below them.
    below = np.searchsorted(positions, np.arange(cells + 1) - 0.5)
    taken = np.zeros(cells + 1, bool)
    for index, position in enumerate(positions):
        for cell in {round(position - 2 * SLACK), round(position + 2 * SLACK)}:
            if not 0 <= cell <= cells or taken[cell]:
                raise ValueError(f"boundary {index} shares a cell with another one")
            taken[cell], boundary[cell], below[cell] = True, boundaries[index], index
    return Quantizer(scale, boundary, below)


@cache
def quantizer(bits: int, codebook: str) -> Quantizer:
    """Return the cell grid of a codebook, with the first scale at which no cell has two boundaries."""
    boundaries = tables.boundaries(bits, codebook)
    for stretch in np.linspace(1, 1.25, 200):
        try:
            return fit(boundaries, CELLS[bits], np.float32(0.5 / (float(boundaries[-1]) * stretch)))
        except ValueError:
            continue
    raise ValueError(f"{CELLS[bits]} cells are too few for the codebook {codebook} with {bits} bits")
