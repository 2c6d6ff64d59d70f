"""Intervals of figures that combine several shares: resample the prompts, and compute the figure from each sample."""

import numpy as np

from revelio_jax.benchmark.measurement import FIGURES, Interval, Outcome, worst

DRAWS = 2000
RETENTIONS = tuple(FIGURES)[1:]
ON_CONCEPT = ("concept", "kept")  # figures of the prompts with the concept; the others are of other prompts


def worst_interval(steered: Outcome, plain: Outcome, adding: bool = False) -> Interval:
    """Return :func:`revelio_jax.benchmark.measurement.worst` with its 95 % bootstrap interval over prompts.

    Both outcomes are resampled with the same prompts. A smallest value of several shares is biased downward in samples,
    so the interval reaches further below the value than above it.
    """
    steered_S, plain_S = _resampled(steered), _resampled(plain)
    effect_S = steered_S["concept"] if adding else 1 - steered_S["concept"]
    retained = [steered_S[name] / np.maximum(plain_S[name], 1e-9) for name in RETENTIONS if name in plain_S]
    return _interval(worst(steered, plain, adding), np.minimum.reduce([effect_S, *retained, np.ones(DRAWS)]))


def retention_interval(outcome: Outcome) -> Interval | None:
    """Return the mean of the retentions with its 95 % bootstrap interval over prompts; None without a retention."""
    resampled_S = _resampled(outcome)
    names = [name for name in RETENTIONS if name in resampled_S]
    if not names:
        return None
    mean = sum(outcome.mean(name) for name in names) / len(names)
    return _interval(mean, np.mean([resampled_S[name] for name in names], axis=0))


def _resampled(outcome: Outcome) -> dict[str, np.ndarray]:
    """Return the mean [DRAWS] of each measured figure over prompts drawn with replacement.

    Figures of the same prompts are drawn together. A draw of only prompts without images is NaN.
    """
    rng = np.random.default_rng(0)
    drawn: dict[int, np.ndarray] = {}
    means: dict[str, np.ndarray] = {}
    for name in FIGURES:
        shares_P = getattr(outcome, name)
        if not (~np.isnan(shares_P)).any():
            continue
        key = name in ON_CONCEPT
        if key not in drawn:
            drawn[key] = rng.integers(len(shares_P), size=(DRAWS, len(shares_P)))
        values_SP = shares_P[drawn[key]]
        measured_S = (~np.isnan(values_SP)).sum(1)
        total_S = np.nansum(values_SP, 1)
        means[name] = np.where(measured_S > 0, total_S / np.maximum(measured_S, 1), np.nan)
    return means


def _interval(mean: float, draws_S: np.ndarray) -> Interval:
    low, high = np.nanquantile(draws_S, (0.025, 0.975))
    return {"mean": float(mean), "low": float(low), "high": float(high)}
