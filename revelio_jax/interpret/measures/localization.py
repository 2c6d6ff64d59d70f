"""Localization: whether the activation of a latent is at few positions of a map, or on the object.

Two shares of the sum of a map a_i >= 0:

    in the top cells      sum over the ceil(n / 10) largest a_i / sum over all i of a_i
    inside a mask         sum of m_i a_i / sum of a_i, with the share m_i of position i that the mask covers

The second is the energy-based pointing game of Score-CAM (Wang et al., arXiv 1910.01279).
"""

import math

import numpy as np

TOP = 0.1  # share of the positions that are the top cells


def share_in_top(map_NC: np.ndarray) -> np.ndarray:
    """Return the share of each of N maps [N, C] in its top cells, float64 [N]; NaN for a map of zeros."""
    count = math.ceil(TOP * map_NC.shape[1])
    sorted_NC = np.sort(map_NC.astype(np.float64), axis=1)
    total_N = sorted_NC.sum(1)
    return np.where(total_N > 0, sorted_NC[:, -count:].sum(1), np.nan) / np.where(total_N > 0, total_N, 1)


def expected(cells: int) -> float:
    """Return the share of a constant map of ``cells`` positions in its top cells."""
    return math.ceil(TOP * cells) / cells


def share_inside(map_NC: np.ndarray, mask_NC: np.ndarray) -> np.ndarray:
    """Return the share of each of N maps [N, C] inside its mask, float64 [N]; NaN for a map of zeros.

    ``mask_NC`` is in 0 .. 1. A NaN in it makes the share of its map NaN.
    """
    map_NC = map_NC.astype(np.float64)
    total_N = map_NC.sum(1)
    return np.where(total_N > 0, (map_NC * mask_NC).sum(1), np.nan) / np.where(total_N > 0, total_N, 1)
