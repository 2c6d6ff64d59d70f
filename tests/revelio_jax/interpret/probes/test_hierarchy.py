"""Absorption of planted classes: a latent of one object replaces the latent of its category."""

import types

import numpy as np
import pytest

from revelio_jax.interpret.latents.purity import Label
from revelio_jax.interpret.probes import hierarchy, sparse
from revelio_jax.interpret.probes.hierarchy import Inputs

OBJECTS = ("apple", "bread", "cat", "dog")  # two foods and two animals


@pytest.fixture(scope="module")
def planted():
    """Rows of objects, whose activations are direction of the category + direction of the object.

    Latent 0 is food and latent 1 animal; 2 to 5 are the objects. Latent 2, the apple, includes the direction of food,
    and latent 0 does not fire on apples.
    """
    eye = np.eye(8)
    W_dec = np.stack([eye[0], eye[1], eye[0] + eye[2], eye[3], eye[4], eye[5]])
    W_dec[2] /= np.sqrt(2)

    def draw(count, seed):
        random = np.random.default_rng(seed)
        thing = random.integers(0, 4, count)
        z = np.zeros((count, 6))
        strength = random.uniform(1, 2, (2, count))
        z[np.arange(count), 2 + thing] = strength[0]
        z[np.arange(count), thing // 2] = strength[1]
        apples = thing == 0
        z[apples, 0], z[apples, 2] = 0, 2 * strength[0, apples]
        x = z @ W_dec + 0.01 * random.normal(size=(count, 8)) + 3
        return Inputs(
            x.astype(np.float32), z.astype(np.float32), (thing // 2).astype(np.int32), np.arange(count)
        ), thing

    latents = types.SimpleNamespace(W_dec_FD=W_dec, b_dec_D=np.full(8, 3.0))
    return draw(400, 0)[0], *draw(200, 1), latents


@pytest.mark.slow
def test_the_absorbed_object_and_the_absorbing_latent_are_found(planted):
    fitted, test, thing, latents = planted
    result = hierarchy.measure(
        fitted, test, latents, ("food", "animal"), Label("name", OBJECTS, thing.astype(np.int32))
    )
    assert set(result) == {"food", "animal"}
    food, animal = result["food"], result["animal"]
    assert animal["full"] == 0
    assert animal["main"] == [1]
    assert animal["f1"] == 1
    assert animal["finer"] == {}
    # The apple latent fires on half of the foods, so it is a main latent, with one that fires on the other half.
    assert food["main"] in ([2, 0], [2, 3])
    assert food["full"] == 0
    part = hierarchy._absorption(test, np.flatnonzero(test.class_N == 0), latents, np.eye(8)[0], np.array([0]))
    fraction, is_full, strongest = part
    np.testing.assert_array_equal(is_full, thing[test.class_N == 0] == 0)
    assert (fraction[is_full] == 1).all()
    assert (strongest[is_full] == 2).all()
    rows = hierarchy._finer(
        Label("name", OBJECTS, thing.astype(np.int32)), test.number_N[test.class_N == 0], is_full, strongest
    )
    assert rows == {"apple": {"full": 1.0, "samples": int((thing == 0).sum()), "absorbing": 2}}


def test_the_log_odds_of_a_class_are_those_of_its_frequency():
    assert sparse.log_odds(np.arange(10) < 2) == pytest.approx(np.log(2 / 8))


@pytest.mark.slow
def test_scores_of_a_probe_are_log_odds_of_unscaled_features():
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (500, 4)).astype(np.float32)
    is_class = x[:, 1] + random.normal(size=500) > 3
    w_1K, b_1 = sparse.fit(x[None], is_class[None])
    scores = x @ w_1K[0] + b_1[0]
    # The mean predicted probability of a fitted logistic regression is the frequency of the class.
    assert (1 / (1 + np.exp(-scores))).mean() == pytest.approx(is_class.mean(), abs=1e-3)
    assert np.abs(w_1K[0]).argmax() == 1
