"""The Wilson score interval of a proportion.

Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference".
"""

import math

Z = 1.959964  # standard normal quantile of a 95 % interval


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion ``share`` observed in ``trials`` trials.

    The interval is (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    """
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2)) / (1 + Z**2 / trials)
    # Rounding must not push the share itself out of the interval.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
