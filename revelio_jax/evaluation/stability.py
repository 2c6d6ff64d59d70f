"""Stability: how many latents of an SAE another run finds again, for example a run with another seed.

Each latent is matched with one latent of the other run so that the sum of the cosines of their decoder rows is as large
as possible (the Hungarian method). Source of the measure and of the limit 0.7: Paulo and Belrose, "Sparse autoencoders
trained on the same data learn different features" (arXiv 2501.16615).

The Hungarian method needs memory F^2 and time F^3. Beyond EXACT latents, pairs are matched that are each other's
nearest neighbors among the latents still unmatched, in rounds. This is the greedy matching, largest cosine first; its
sum is at least half of the largest one. Once EXACT latents are left, the Hungarian method matches them.
"""

import typing

import numpy as np
import scipy.optimize

EXACT = 4096  # latents that are matched with the Hungarian method
SHARED = 0.7  # a latent is found again if its cosine is above this
BLOCK = 1024  # decoder rows whose cosines are computed together


class Stability(typing.TypedDict):
    """The mean cosine of matched decoder rows, and the share of latents whose cosine is above SHARED.

    ``matching`` is "hungarian" or "greedy".
    """

    latents: int
    mean_cosine: float
    shared: float
    matching: str


def stability(W_dec_FD: np.ndarray, other_FD: np.ndarray) -> Stability:
    """Return the stability of two dictionaries with decoder rows float [F, D]; the numbers of latents may differ.

    With different numbers, the latents of the smaller one are matched. A row of zeros has cosine 0 to all others.
    """
    one_FD, other_FD = _unit(W_dec_FD), _unit(other_FD)
    is_exact = min(len(one_FD), len(other_FD)) <= EXACT
    cosine_F = _matched(one_FD, other_FD)
    return {
        "latents": len(cosine_F),
        "mean_cosine": float(cosine_F.mean()),
        "shared": float((cosine_F > SHARED).mean()),
        "matching": "hungarian" if is_exact else "greedy",
    }


def _unit(W_dec_FD: np.ndarray) -> np.ndarray:
    norm_F1 = np.linalg.norm(W_dec_FD, axis=1, keepdims=True)
    return np.asarray(W_dec_FD / np.where(norm_F1 > 0, norm_F1, 1), np.float32)


def _matched(one_FD: np.ndarray, other_FD: np.ndarray) -> np.ndarray:
    """Return the cosines of the matched pairs, float32 [smaller number of rows], in no order."""
    cosines = []
    while min(len(one_FD), len(other_FD)) > EXACT:
        of_one, best_one, of_other = _nearest(one_FD, other_FD)
        mutual = of_other[of_one] == np.arange(len(one_FD))
        cosines.append(best_one[mutual])
        taken = np.zeros(len(other_FD), bool)
        taken[of_one[mutual]] = True
        one_FD, other_FD = one_FD[~mutual], other_FD[~taken]
    cosine_FG = one_FD @ other_FD.T
    cosines.append(cosine_FG[scipy.optimize.linear_sum_assignment(cosine_FG, maximize=True)])
    return np.concatenate(cosines)


def _nearest(one_FD: np.ndarray, other_GD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the nearest other row of each row, its cosine, and the nearest row of each other row.

    Of equal cosines the lowest number is nearest, so at least one pair is mutual.
    """
    nearest_F, cosine_F = np.empty(len(one_FD), np.int64), np.empty(len(one_FD), np.float32)
    nearest_G, cosine_G = np.zeros(len(other_GD), np.int64), np.full(len(other_GD), -np.inf, np.float32)
    for start in range(0, len(one_FD), BLOCK):
        cosine_BG = one_FD[start : start + BLOCK] @ other_GD.T
        stop = start + len(cosine_BG)
        nearest_F[start:stop] = cosine_BG.argmax(1)
        cosine_F[start:stop] = cosine_BG[np.arange(len(cosine_BG)), nearest_F[start:stop]]
        best_G = cosine_BG.argmax(0)
        value_G = cosine_BG[best_G, np.arange(len(other_GD))]
        better_G = value_G > cosine_G
        nearest_G[better_G], cosine_G[better_G] = start + best_G[better_G], value_G[better_G]
    return nearest_F, cosine_F, nearest_G
