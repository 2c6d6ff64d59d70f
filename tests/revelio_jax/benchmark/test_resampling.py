"""Intervals of combined figures: they hold the figure, vanish without variation, and draw prompts together."""

import numpy as np
import pytest

from revelio_jax.benchmark.measurement import Outcome, worst
from revelio_jax.benchmark.resampling import retention_interval, worst_interval

NONE = np.zeros(0)


def outcome(concept, kept=NONE, others_label=NONE, others_kept=NONE):
    return Outcome(*(np.asarray(each, float) for each in (concept, kept, others_label, others_kept)))


def test_the_interval_of_the_worst_figure_holds_it():
    random = np.random.default_rng(0)
    shares = [random.integers(0, 4, 24) / 3 for _ in range(4)]
    steered, plain = outcome(*shares), outcome(np.ones(24), *([np.ones(24)] * 3))
    found = worst_interval(steered, plain)
    assert found["mean"] == worst(steered, plain)
    assert found["low"] < found["mean"] < found["high"]


@pytest.mark.parametrize(("adding", "mean"), [(False, 0.75), (True, 0.25)])
def test_equal_prompts_have_no_interval(adding, mean):
    steered = outcome([0.25] * 6, [1.0] * 6)
    found = worst_interval(steered, outcome([1.0] * 6, [1.0] * 6), adding)
    assert found == {"mean": mean, "low": mean, "high": mean}


def test_the_width_is_that_of_a_share():
    """With retention 1, the worst figure is the effect, whose standard error is known."""
    steered = outcome(np.arange(100) % 2, np.ones(100))
    found = worst_interval(steered, outcome(np.ones(100), np.ones(100)))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.05, rel=0.15)


def test_prompts_are_drawn_together():
    """The retention loses exactly the prompts that keep the concept, so effect and retention are always equal."""
    lost = np.arange(20) % 2.0
    steered = outcome(lost, 1 - lost)
    found = worst_interval(steered, outcome(np.ones(20), np.ones(20)))
    assert (found["low"] + found["high"]) / 2 == pytest.approx(0.5, abs=0.03)  # apart, the smaller one is below


def test_a_prompt_without_images_is_left_out():
    steered = outcome([0.0, np.nan, 0.0], [1.0, np.nan, 1.0], [0.5, 0.5], [np.nan, 1.0])
    assert retention_interval(steered)["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert worst_interval(steered, outcome([1.0] * 3, [1.0] * 3, [1.0] * 2, [1.0] * 2))["mean"] == 0.5


def test_without_retention_there_is_no_interval():
    assert retention_interval(outcome([0.0, 1.0])) is None
