"""A way to find a value's index with one comparison, proved for each codebook.

The boundaries of a Lloyd-Max quantizer lie ever wider apart towards the tails. An odd polynomial that undoes that
spacing sends boundary k close to k - middle, so that rounding its value gives the one boundary the value may be on
either side of, and one comparison with that boundary gives the index. It is exact, not an approximation: `Quantizer`
refuses a polynomial that could lead to a wrong boundary.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray

from hadakv_kernels import tables

# Coefficients of v, v**3, v**5, ... that each width needs.
TERMS = {2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 8: 5}
# How far from k the polynomial may send boundary k; one half would be the wrong cell.
TOLERANCE = 0.4


@dataclass(frozen=True)
class Quantizer:
    """The polynomial of a codebook.

    Attributes:
        limit: values are clamped to this magnitude first; beyond it the index is settled.
        coefficients: of v, v**3, ..., float32 values.
        middle: the index of the boundary at zero.

    Raises:
        AssertionError: the polynomial could lead to a wrong boundary.
    """

    limit: float
    coefficients: tuple[float, ...]
    middle: int
    boundaries: NDArray[np.float32]

    def __post_init__(self) -> None:
        at_boundaries = self.cells(self.boundaries.astype(np.float64))
        distance = np.abs(at_boundaries - np.arange(len(self.boundaries))).max()
        assert distance < TOLERANCE, f"boundaries land {distance:.3f} cells off"
        dense = self.cells(np.linspace(-self.limit, self.limit, 1 << 16))
        assert (np.diff(dense) > 0).all(), "the polynomial is not monotone"
        assert dense[0] > -TOLERANCE
        assert dense[-1] < len(self.boundaries) - 1 + TOLERANCE

    def cells(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where the polynomial sends values, before rounding."""
        return self.middle + v * polynomial.polyval(v * v, self.coefficients)


@cache
def quantizer(bits: int, codebook: str) -> Quantizer:
    """The polynomial for a codebook, fitted by reweighted least squares (Lawson's algorithm for the minimax fit)."""
    boundaries = tables.boundaries(bits, codebook)
    middle = len(boundaries) // 2
    scale = float(boundaries[-1])
    powers = (boundaries[:, None].astype(np.float64) / scale) ** (2 * np.arange(TERMS[bits]) + 1)
    wanted = np.arange(len(boundaries)) - middle
    weights = np.full(len(boundaries), 1.0 / len(boundaries))
    solution = np.zeros(TERMS[bits])
    for _ in range(100):
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(powers * root[:, None], wanted * root, rcond=None)[0]
        weights = weights * (np.abs(powers @ solution - wanted) + 1e-12)
        weights /= weights.sum()
    coefficients = solution / scale ** (2 * np.arange(TERMS[bits]) + 1)
    as_float32 = tuple(float(np.float32(c)) for c in coefficients)
    limit = float(np.float32(scale * (1 + 2**-10)))
    return Quantizer(limit, as_float32, middle, boundaries)
