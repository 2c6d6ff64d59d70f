"""The recovered share of a figure, with a bootstrap interval over samples."""

import numpy as np

from revelio_jax.benchmark.measurement import Interval
from revelio_jax.errors import InputError

DRAWS = 2000


def recovered_share(plain_N: np.ndarray, patched_N: np.ndarray, ablated_N: np.ndarray) -> Interval:
    """Return (ablated - patched) / (ablated - plain) of the means over samples, with its 95 % bootstrap interval.

    1 means that the patch changes nothing, 0 that it is as bad as the ablation. All arrays [N] belong to the same
    samples, and one draw of the bootstrap takes the same samples of all three. Source: the loss recovered of Bricken
    et al. (2023), "Towards Monosemanticity", for any figure.

    Raise InputError if the ablation changes nothing: the 95 % interval of ablated - plain contains 0, so the share is
    not defined.
    """
    samples_RN = np.random.default_rng(0).integers(len(plain_N), size=(DRAWS, len(plain_N)))
    damage_R = (ablated_N - plain_N)[samples_RN].mean(1)
    low, high = np.quantile(damage_R, (0.025, 0.975))
    if low <= 0 <= high:
        raise InputError(
            f"the ablation changes nothing that can be measured: by {float((ablated_N - plain_N).mean()):.3g}, 95 % "
            f"interval {low:.3g} to {high:.3g}, over {len(plain_N)} samples; the recovered share is not defined"
        )
    share_R = (ablated_N - patched_N)[samples_RN].mean(1) / np.where(damage_R == 0, np.nan, damage_R)
    share = (ablated_N - patched_N).mean() / (ablated_N - plain_N).mean()
    low, high = np.nanquantile(share_R, (0.025, 0.975))
    return {"mean": float(share), "low": float(low), "high": float(high)}


def is_above(first_N: np.ndarray, second_N: np.ndarray, ablated_N: np.ndarray, plain_N: np.ndarray) -> bool:
    """Return whether a figure ranks the first patch above the second: closer to plain, beyond its interval.

    The 95 % bootstrap interval of the difference of their recovered shares is above 0.
    """
    samples_RN = np.random.default_rng(0).integers(len(plain_N), size=(DRAWS, len(plain_N)))
    sign = np.sign((ablated_N - plain_N).mean())
    better_R = sign * (second_N - first_N)[samples_RN].mean(1)
    return bool(np.quantile(better_R, 0.025) > 0)
