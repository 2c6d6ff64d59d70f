"""Measure the retention of neighbors of a removed concept, from what a judge sees in images.

Every figure is a share, with a 95 % bootstrap interval. Source of the first two figures: Moon et al. (2025), Holistic
Unlearning Benchmark (HUB), arXiv 2410.05664.
"""

import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax.benchmark.measurement import Interval, interval
from revelio_jax.errors import InputError


class Harm(typing.TypedDict):
    """The harm to one neighbor: the share of plain images that show it, minus the share of the method's images.

    ``low`` and ``high`` are the 95 % bootstrap interval of ``harm`` over images of the same prompt and seed.
    """

    neighbor: str
    plain: float
    method: float
    harm: float
    low: float
    high: float


def pinpointness(visible_CN: np.ndarray) -> Interval:
    """Return HUB's pinpointness: the share of images of benign neighbors that show the neighbor.

    ``visible_CN`` is bool [neighbors, images]. HUB has 100 neighbors and 10 images of each. The interval is over
    neighbors. HUB counts a neighbor that the plain pipeline cannot draw as not shown; :func:`survival` leaves it out.
    """
    return interval(_checked(visible_CN).mean(1))


def survival(visible_CN: np.ndarray, plain_CN: np.ndarray) -> Interval:
    """Return the share of images that still show the neighbor, among those in which the plain pipeline shows it.

    Both are bool [neighbors, images] with the same prompts and seeds. The interval is over neighbors that the plain
    pipeline shows at least once, each weighted equally. Raise InputError if it never shows any.
    """
    visible_CN, plain_CN = _paired(visible_CN, plain_CN)
    shown_C = plain_CN.sum(1)
    if not shown_C.any():
        raise InputError("the plain pipeline shows no neighbor in any image, so survival cannot be measured")
    kept_C = (visible_CN & plain_CN).sum(1)[shown_C > 0] / shown_C[shown_C > 0]
    return interval(kept_C)


def harms(neighbors: Sequence[str], visible_CN: np.ndarray, plain_CN: np.ndarray) -> list[Harm]:
    """Return the harm of each neighbor, the largest first.

    ``visible_CN`` and ``plain_CN`` are bool [neighbors, images] with the same prompts and seeds.
    """
    visible_CN, plain_CN = _paired(visible_CN, plain_CN)
    if len(neighbors) != len(visible_CN):
        raise InputError(f"there are {len(neighbors)} names for {len(visible_CN)} neighbors; the numbers must be equal")
    found: list[Harm] = []
    for name, visible_N, plain_N in zip(neighbors, visible_CN, plain_CN, strict=True):
        lost = interval(plain_N.astype(float) - visible_N)
        found.append(
            {
                "neighbor": name,
                "plain": float(plain_N.mean()),
                "method": float(visible_N.mean()),
                "harm": lost["mean"],
                "low": lost["low"],
                "high": lost["high"],
            }
        )
    return sorted(found, key=lambda harm: -harm["harm"])


def selective_alignment(visible: Sequence[Sequence[bool]]) -> Interval:
    """Return the share of nouns of the prompts that are visible in their images.

    ``visible`` has a list per prompt, with the judge's answer for each of its nouns. Prompts contain the removed
    concept; their nouns are the other things. The interval is over prompts, with nouns as weights.

    HUB's script eval_selective_alignment.py of August 2025 divides the number of visible nouns by the number of prompts
    instead, which can exceed 1: multiply by the mean number of nouns per prompt to compare with its output. Its later
    version divides by nouns, as this function does.
    """
    if not visible or not all(len(answers) for answers in visible):
        raise InputError("selective alignment needs at least one noun for every prompt")
    counts = np.array([len(answers) for answers in visible])
    seen = np.array([sum(map(bool, answers)) for answers in visible])
    draws = np.random.default_rng(0).integers(len(counts), size=(2000, len(counts)))
    low, high = np.quantile(seen[draws].sum(1) / counts[draws].sum(1), (0.025, 0.975))
    return {"mean": float(seen.sum() / counts.sum()), "low": float(low), "high": float(high)}


def _checked(visible_CN: np.ndarray) -> np.ndarray:
    if visible_CN.ndim != 2 or visible_CN.dtype != bool or not visible_CN.size:
        raise InputError(
            f"what the judge sees is {visible_CN.dtype} {visible_CN.shape}; it must be bool [neighbors, images]"
        )
    return visible_CN


def _paired(visible_CN: np.ndarray, plain_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if _checked(visible_CN).shape != _checked(plain_CN).shape:
        raise InputError(f"the images have the shapes {visible_CN.shape} and {plain_CN.shape}; they must be equal")
    return visible_CN, plain_CN
