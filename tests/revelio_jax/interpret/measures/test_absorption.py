"""Absorption against a reference that follows the definition sample by sample, in float64, and on planted latents."""

import numpy as np
import pytest

from revelio_jax.interpret.measures.absorption import absorption, main_latents


def of_sample(z_F, projection, W_dec_FD, probe_D, main):
    """The absorbed fraction and whether a sample is fully absorbed, by the definition."""
    probe = probe_D / np.linalg.norm(probe_D)
    along = [row @ probe for row in W_dec_FD]
    cosine = [row @ probe / np.linalg.norm(row) for row in W_dec_FD]
    of_main = sum(z_F[i] * along[i] for i in main)
    others = [z_F[i] * along[i] for i in range(len(z_F)) if i not in main and cosine[i] >= 0.1 and z_F[i] > 0]
    absorbing = sum(sorted(others)[-3:])
    fraction = 0.0
    if projection > 0 and of_main < projection and absorbing / projection >= 0.4:
        reduced = min(absorbing, projection - of_main)
        fraction = 1.0 if of_main <= 0 else reduced / (reduced + of_main)
    strongest = max(range(len(z_F)), key=lambda i: z_F[i] * along[i])
    is_full = (
        projection > 0
        and all(z_F[i] == 0 for i in main)
        and cosine[strongest] >= 0.025
        and z_F[strongest] * along[strongest] / projection >= 0.4
    )
    return fraction, is_full, strongest


def test_absorption_is_its_definition():
    random = np.random.default_rng(0)
    W_dec = random.normal(size=(9, 5))
    probe, main = random.normal(size=5), np.array([0, 4])
    z = random.exponential(size=(300, 9)) * (random.random((300, 9)) < 0.4)
    projection = z @ W_dec @ probe / np.linalg.norm(probe) + random.normal(size=300)
    measured = absorption(z, projection, W_dec, probe, main)
    expected = [of_sample(*each, W_dec, probe, main) for each in zip(z, projection, strict=True)]
    fractions, is_full, strongest = map(np.array, zip(*expected, strict=True))
    np.testing.assert_allclose(measured.fraction, fractions, atol=1e-12)
    np.testing.assert_array_equal(measured.is_full, is_full)
    np.testing.assert_array_equal(measured.strongest, strongest)
    assert 0 < is_full.sum() < 300
    assert len(np.unique(fractions)) > 10


def test_a_child_latent_that_includes_the_direction_of_its_parent_absorbs_it():
    parent, child = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    W_dec = np.stack([parent, (parent + child) / np.sqrt(2), child])
    # Latent 0 fires on the first sample. On the second, which is of the child, only latent 1 fires. On the third, the
    # latent of the child does not include the parent, and both fire.
    z = np.array([[2.0, 0, 0], [0, 2 * np.sqrt(2), 0], [2.0, 0, 2]])
    measured = absorption(z, z @ W_dec @ parent, W_dec, parent, np.array([0]))
    assert measured.fraction == pytest.approx([0, 1, 0])
    assert measured.is_full.tolist() == [False, True, False]
    assert measured.strongest.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("f1", "count"), [([0.7, 0.72, 0.9], 1), ([0.5, 0.6, 0.7, 0.7], 3), ([0.0, 0.0], 1), ([0.4], 1)]
)
def test_main_latents_end_where_f1_stops_rising(f1, count):
    assert main_latents(f1) == count
