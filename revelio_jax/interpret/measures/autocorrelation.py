"""Moran's I: whether neighboring positions of an activation map have similar values.

Source: P. A. P. Moran (1950), "Notes on continuous stochastic phenomena". With the deviations z_i of the n positions
from their mean, and w_ij = 1 for positions that share an edge, otherwise 0,

    I = (n / sum of w_ij) sum over i, j of w_ij z_i z_j / sum over i of z_i^2

I is 1 for large even areas, -1 for a checkerboard, and -1 / (n - 1) is expected if the values are shuffled.
"""

import numpy as np


def morans_i(map_NHW: np.ndarray) -> np.ndarray:
    """Return Moran's I of N maps [N, H, W], float64 [N]; NaN for a constant map and for a single position."""
    _, height, width = map_NHW.shape
    edges = height * (width - 1) + width * (height - 1)
    z_NHW = map_NHW.astype(np.float64)
    z_NHW = z_NHW - z_NHW.mean((1, 2), keepdims=True)
    products_N = (z_NHW[:, :, 1:] * z_NHW[:, :, :-1]).sum((1, 2)) + (z_NHW[:, 1:] * z_NHW[:, :-1]).sum((1, 2))
    squares_N = np.square(z_NHW).sum((1, 2))
    # Each edge counts twice in both sums over i, j, which cancels.
    varies_N = squares_N > 1e-12 * np.square(map_NHW.astype(np.float64)).sum((1, 2))
    return np.where(varies_N, height * width * products_N, np.nan) / np.where(varies_N, edges * squares_N, 1)


def expected(cells: int) -> float | None:
    """Return the expected Moran's I of ``cells`` shuffled values, None for a single one."""
    return -1 / (cells - 1) if cells > 1 else None
