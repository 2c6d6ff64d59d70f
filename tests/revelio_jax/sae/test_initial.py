"""Initial parameters."""

import numpy as np

from revelio_jax import sharding
from revelio_jax.config import Sae
from revelio_jax.sae.initial import bias, geometric_median, initial_params


def test_decoder_rows_are_unit_and_the_encoder_is_a_copy():
    mesh = sharding.make_mesh(1, 1, 8, 64)
    params = initial_params(Sae(), 0, 64, np.arange(12), mesh)
    np.testing.assert_allclose(np.linalg.norm(params["W_dec_FD"], axis=1), np.ones(64), rtol=1e-6)
    np.testing.assert_array_equal(params["W_enc_FD"], params["W_dec_FD"])
    assert params["W_enc_FD"].unsafe_buffer_pointer() != params["W_dec_FD"].unsafe_buffer_pointer()
    np.testing.assert_array_equal(params["b_dec_D"], np.arange(12))


def test_the_same_numbers_on_every_mesh():
    one = initial_params(Sae(), 3, 64, np.zeros(12), sharding.make_mesh(1, 1, 8, 64))
    split = initial_params(Sae(), 3, 64, np.zeros(12), sharding.make_mesh(2, 4, 8, 64))
    np.testing.assert_array_equal(one["W_dec_FD"], split["W_dec_FD"])
    assert split["W_dec_FD"].addressable_shards[0].data.shape == (16, 12)


def test_geometric_median_resists_outliers():
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(300, 4)) + 3, np.full((60, 4), 1e4)]).astype(np.float32)
    median = geometric_median(rows)
    assert np.abs(median - 3).max() < 0.5
    assert bias("mean", rows).max() > 1000
    step = np.random.default_rng(1).normal(size=(20, 4)) * 0.05
    total = lambda point: np.linalg.norm(rows - point, axis=1).sum()  # noqa: E731
    assert all(total(median) <= total(median + s) for s in step)


def test_geometric_median_that_falls_on_a_row():
    rows = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    np.testing.assert_allclose(geometric_median(rows), [0, 0], atol=1e-6)
    np.testing.assert_array_equal(geometric_median(np.ones((3, 2), np.float32)), [1, 1])
