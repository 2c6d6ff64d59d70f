"""Splits of the samples for probes, and Wilson intervals."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax.interpret.probes.split import LEAST, TEST, split
from revelio_jax.interpret.wilson import wilson

SAMPLES = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 40)), min_size=1, max_size=200)


@given(SAMPLES, st.integers(0, 5))
def test_the_sets_share_no_sample_and_no_group(samples, seed):
    class_N, group_N = np.array(samples).T
    parts = split(class_N, group_N, seed)
    if parts is None:
        return
    all_of = [parts.train, parts.validation, parts.test]
    for i, one in enumerate(all_of):
        assert len(one)
        assert (np.diff(one) > 0).all()
        assert (class_N[one] >= 0).all()
        for other in all_of[:i]:
            assert not set(one) & set(other)
            assert not set(group_N[one]) & set(group_N[other])
    assert parts.groups == len(set(group_N[parts.test]))
    again = split(class_N, group_N, seed)
    assert all(np.array_equal(a, b) for a, b in zip(all_of, (again.train, again.validation, again.test), strict=True))


@given(st.lists(st.integers(0, 40), min_size=2, max_size=5), st.integers(0, 5))
def test_the_test_set_has_its_share_of_every_class(sizes, seed):
    class_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = split(class_N, np.arange(len(class_N)), seed)
    enough = [size for size in sizes if size >= LEAST]
    assert (parts is None) == (len(enough) < 2)
    for one, size in enumerate(sizes) if parts else []:
        tested = int((class_N[parts.test] == one).sum())
        assert tested == (int(np.ceil(TEST * size)) if size >= LEAST else 0)


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_equals_scipys_wilson_interval(trials, share):
    right = round(share * trials)
    low, high = wilson(right / trials, trials)
    wanted = scipy.stats.binomtest(right, trials).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
