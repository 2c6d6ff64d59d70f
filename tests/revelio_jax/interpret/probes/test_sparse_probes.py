"""Sparse probes find the features that represent a class, and measure them on other samples."""

import numpy as np
import pytest

from revelio_jax.interpret.probes import sparse


def planted(random, n, d=60):
    """Samples of three classes. Feature 7 represents class 0; 20 and 21 together represent class 1."""
    x = random.normal(size=(n, d)).astype(np.float32)
    classes = random.integers(0, 3, n).astype(np.int32)
    x[classes == 0, 7] += 8
    x[np.ix_(classes == 1, [20, 21])] += 1.5
    return x, classes


@pytest.mark.slow
def test_planted_features_are_found():
    random = np.random.default_rng(0)
    result = sparse.measure(planted(random, 800), planted(random, 400))
    assert result.classes.tolist() == [0, 1, 2]
    assert result.best[0].feature == 7
    assert result.best[0].f1 > 0.98
    assert result.best[1].feature in (20, 21)
    assert result.auroc[0, 0] > 0.999
    assert result.balanced_accuracy[0, 0] > 0.99
    by_k = dict(zip(sparse.KS, result.auroc[1], strict=True))
    assert by_k[2] > by_k[1] + 0.05  # two features tell more than one
    assert by_k[50] > by_k[2] - 0.05


@pytest.mark.slow
def test_features_without_a_class_are_at_chance():
    random = np.random.default_rng(1)
    sets = [(random.normal(size=(n, 30)).astype(np.float32), random.integers(0, 2, n)) for n in (400, 1000)]
    result = sparse.measure(*sets)
    assert np.abs(result.auroc - 0.5).max() < 0.1
    assert np.abs(result.balanced_accuracy - 0.5).max() < 0.1


def test_area_equals_the_share_of_ordered_pairs():
    random = np.random.default_rng(2)
    scores, is_class = random.integers(0, 9, 60).astype(float), random.random(60) < 0.3
    pairs = scores[is_class][:, None] - scores[~is_class]
    assert sparse.area_under_roc(scores, is_class) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@pytest.mark.slow
def test_only_the_most_frequent_classes_are_probed():
    random = np.random.default_rng(3)
    classes = np.concatenate([np.repeat(np.arange(20), 6), np.repeat(np.arange(20, 25), 5)])
    x = np.eye(25, dtype=np.float32)[classes] + 0.01 * random.random((len(classes), 25), np.float32)
    result = sparse.measure((x, classes), (x, classes))
    assert result.classes.tolist() == list(range(20))
    assert [best.feature for best in result.best] == list(range(20))
