"""The recovered share against its definition, its interval, and the case in which it is not defined."""

import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.faithfulness.shares import is_above, recovered_share

RNG = np.random.default_rng(1)
PLAIN = RNG.uniform(0.1, 0.2, 40)
ABLATED = PLAIN + RNG.uniform(0.5, 1.0, 40)


@pytest.mark.parametrize("share", [1.0, 0.75, 0.0, -0.5])
def test_share_is_one_for_plain_and_zero_for_the_ablation(share):
    patched = ABLATED + share * (PLAIN - ABLATED)
    found = recovered_share(PLAIN, patched, ABLATED)
    assert found["mean"] == pytest.approx(share)
    assert found["low"] == pytest.approx(share)
    assert found["high"] == pytest.approx(share)


def test_share_is_the_same_for_figures_that_fall_with_damage():
    patched = (PLAIN + ABLATED) / 2
    assert recovered_share(-PLAIN, -patched, -ABLATED)["mean"] == pytest.approx(0.5)


def test_interval_contains_the_share_and_reflects_the_samples():
    patched = PLAIN + RNG.uniform(0, 0.4, 40)
    found = recovered_share(PLAIN, patched, ABLATED)
    assert found["mean"] == pytest.approx((ABLATED - patched).mean() / (ABLATED - PLAIN).mean())
    assert found["low"] < found["mean"] < found["high"]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_share_is_refused_if_the_ablation_changes_nothing(noise):
    ablated = PLAIN + noise * np.resize([1, -1], 40)
    with pytest.raises(InputError, match="the ablation changes nothing that can be measured"):
        recovered_share(PLAIN, PLAIN, ablated)


def test_ranking_needs_more_than_chance():
    near, far = PLAIN + 0.1, PLAIN + 0.4
    assert is_above(near, far, ABLATED, PLAIN)
    assert not is_above(far, near, ABLATED, PLAIN)
    assert not is_above(near, near + 0.01 * np.resize([1, -1], 40), ABLATED, PLAIN)
    assert is_above(-near, -far, -ABLATED, -PLAIN)
