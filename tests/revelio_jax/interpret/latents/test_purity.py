"""Purity measures against their plain definitions."""

import collections

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import purity

LABELS = st.lists(st.integers(-1, 4), min_size=1, max_size=60)


@given(LABELS, st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(0, 30))
def test_measures_use_the_ten_strongest_labeled_samples(classes, seed, top, fires_on):
    random = np.random.default_rng(seed)
    label = purity.Label("kind", tuple("abcde"), np.array(classes, np.int32))
    samples = np.full((1, top), -1, np.int32)
    there = min(top, len(classes))
    samples[0, :there] = random.permutation(len(classes))[:there]
    found = purity.measure(label, samples, np.array([fires_on]), top)
    count = min(10, top)
    seen = [classes[s] for s in samples[0] if s >= 0 and classes[s] >= 0][:count]
    if len(seen) < count or fires_on <= count:
        assert np.isnan([found.purity[0], found.sigma[0], found.entropy[0]]).all()
        assert found.majority[0] == -1
        return
    shares = np.array(list(collections.Counter(seen).values())) / count
    assert found.sigma[0] == pytest.approx(np.std(seen), abs=1e-6)
    assert found.entropy[0] == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-6)
    assert found.purity[0] == pytest.approx(shares.max())
    assert seen.count(found.majority[0]) == max(collections.Counter(seen).values())


def test_chance_is_the_mean_over_random_draws():
    label = purity.Label("kind", ("a", "b"), np.repeat([0, 1], [30, 10]).astype(np.int32))
    found = purity.chance(label, np.arange(40), 20)
    random = np.random.default_rng(5)
    draws = [label.of_sample[random.choice(40, 10, replace=False)] for _ in range(4000)]
    shares = [max((d == 0).mean(), (d == 1).mean()) for d in draws]
    assert found["purity"] == pytest.approx(np.mean(shares), abs=0.01)
    assert purity.chance(label, np.arange(9), 20) is None


def test_the_interval_contains_the_mean_and_narrows_with_more_latents():
    values = np.random.default_rng(0).random(400)
    few, many = purity.interval(values[:25]), purity.interval(np.append(values, np.nan))
    for found, some in ((few, values[:25]), (many, values)):
        assert found["low"] < found["mean"] < found["high"]
        assert found["mean"] == pytest.approx(some.mean())
        assert found["latents"] == len(some)
        half = 1.96 * some.std() / len(some) ** 0.5
        assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.25)
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert purity.interval(np.array([np.nan])) is None


def test_label_columns_have_a_repeated_class():
    table = pyarrow.table(
        {"prompt": ["x", "x", "y"], "kind": ["b", "a", "b"], "own": ["1", "2", "3"], "one": ["z", "z", "z"],
         "gap": ["", "q", "q"], "number": [10, 9, 10]}
    )  # fmt: skip
    found = {label.name: label for label in purity.read_labels(table, ())}
    assert list(found) == ["kind", "number"]
    assert found["kind"].classes == ("a", "b")
    assert found["number"].classes == ("9", "10")
    (gap,) = purity.read_labels(table, ("gap",))
    assert gap.of_sample.tolist() == [-1, 0, 0]
    with pytest.raises(InputError, match=r"config\.interpret\.labels has 'shade'"):
        purity.read_labels(table, ("shade",))
