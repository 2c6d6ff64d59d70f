"""The monosemanticity score against its definition over pairs, in float64."""

import numpy as np
import pytest

from revelio_jax.interpret.measures.monosemanticity import SimilaritySums, monosemanticity


def over_pairs(activation_N, embedding_NE):
    """The definition: scaled activations and cosines of all pairs of different samples."""
    scaled = (activation_N - activation_N.min()) / (activation_N.max() - activation_N.min())
    total = weight = 0.0
    for n, one in enumerate(embedding_NE):
        for m, other in enumerate(embedding_NE):
            if n != m:
                cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
                total += scaled[n] * scaled[m] * cosine
                weight += scaled[n] * scaled[m]
    return total / weight


@pytest.fixture
def samples():
    random = np.random.default_rng(0)
    activation = random.exponential(size=(12, 5)) * (random.random((12, 5)) < 0.5)
    activation[:, 1] = random.exponential(size=12) + 0.3  # fires on every sample, so its smallest value is above 0
    activation[:, 3] = np.arange(12) == 4  # fires on one sample
    activation[:, 4] = 0
    return activation, random.normal(size=(12, 4)) + 0.5


def test_the_score_is_the_weighted_mean_over_pairs(samples):
    activation, embedding = samples
    scores = monosemanticity(activation, embedding)
    for latent in range(3):
        assert scores[latent] == pytest.approx(over_pairs(activation[:, latent], embedding), abs=1e-12)
    assert np.isnan(scores[3:]).all()


def test_alike_samples_score_1_and_opposite_ones_less():
    embedding = np.array([[1.0, 0], [3, 0], [0, 1], [0, 2]])
    activation = np.array([[1.0, 1], [2, 0], [0, 1], [0, 0]])
    assert monosemanticity(activation, embedding) == pytest.approx([1, 0])


def test_batches_change_nothing(samples):
    activation, embedding = samples
    sums = SimilaritySums(5, embedding)
    for part in np.split(np.arange(12), [5, 6]):
        at, latent = np.nonzero(activation[part])
        sums.add(part, latent, part[at], activation[part[at], latent])
    np.testing.assert_allclose(sums.scores(), monosemanticity(activation, embedding), rtol=1e-12)


def test_samples_without_an_embedding_are_left_out(samples):
    activation, embedding = samples
    without = embedding.copy()
    without[[2, 7]] = np.nan
    rest = np.delete(np.arange(12), [2, 7])
    expected = monosemanticity(activation[rest], embedding[rest])
    np.testing.assert_allclose(monosemanticity(activation, without), expected, rtol=1e-12)


def test_chance_is_the_mean_similarity_of_pairs(samples):
    _, embedding = samples
    sums = SimilaritySums(1, embedding)
    nothing = np.zeros(0, np.int64)
    assert sums.chance() is None
    sums.add(np.arange(12), nothing, nothing, np.zeros(0))
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    assert sums.chance() == pytest.approx((unit @ unit.T)[~np.eye(12, dtype=bool)].mean(), abs=1e-12)
