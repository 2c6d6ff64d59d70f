"""Wilson's interval of a share (1927, "Probable inference, the law of succession, ...")."""

import math

Z = 1.959964  # of 95 %


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share that was seen in so many trials."""
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2)) / (1 + Z**2 / trials)
    # The ends hold the share itself, also where rounding would not.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
