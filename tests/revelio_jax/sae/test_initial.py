"""Initial parameters: unit decoder rows, the fitted encoder and the geometric median."""

import jax
import numpy as np
import pytest

from revelio_jax.config import SaeConfig
from revelio_jax.sae import sharding
from revelio_jax.sae.initial import RIDGE, bias, geometric_median, initial_params, row_directions

ROWS = np.random.default_rng(0).normal(size=(100, 12)).astype(np.float32)


def test_decoder_rows_are_unit_and_the_encoder_is_a_copy():
    mesh = sharding.make_mesh(1, 1, 8, 64)
    params = initial_params(SaeConfig(init="unit"), 0, 64, np.arange(12), ROWS, mesh)
    np.testing.assert_allclose(np.linalg.norm(params["W_dec_FD"], axis=1), np.ones(64), rtol=1e-6)
    np.testing.assert_array_equal(params["W_enc_FD"], params["W_dec_FD"])
    assert params["W_enc_FD"].unsafe_buffer_pointer() != params["W_dec_FD"].unsafe_buffer_pointer()
    np.testing.assert_array_equal(params["b_dec_D"], np.arange(12))


@pytest.mark.parametrize("init", ["unit", "fitted", "rows"])
def test_parameters_are_equal_on_every_mesh(init):
    sae = SaeConfig(k=4, init=init)
    one = initial_params(sae, 3, 64, np.zeros(12), ROWS, sharding.make_mesh(1, 1, 8, 64))
    split = initial_params(sae, 3, 64, np.zeros(12), ROWS, sharding.make_mesh(2, 4, 8, 64))
    rounding = {"unit": (0, 0), "fitted": (0, 1e-5), "rows": (1e-5, 1e-5)}[init]
    np.testing.assert_allclose(one["W_dec_FD"], split["W_dec_FD"], rtol=0, atol=rounding[0])
    np.testing.assert_allclose(one["W_enc_FD"], split["W_enc_FD"], rtol=0, atol=rounding[1])
    assert split["W_dec_FD"].addressable_shards[0].data.shape == (16, 12)


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "jumprelu", "dense"])
def test_the_fitted_encoder_has_the_smallest_error(architecture):
    k, b_dec = 4, np.full(12, 0.1)
    sae = SaeConfig(architecture=architecture, k=k, init="fitted")
    params = initial_params(sae, 0, 64, b_dec, ROWS, sharding.make_mesh(1, 1, 8, 64))
    norms = np.linalg.norm(params["W_enc_FD"], axis=1)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    centered, W_dec = ROWS - b_dec, np.asarray(params["W_dec_FD"])
    pre = np.maximum(centered @ W_dec.T, 0)
    if architecture != "dense":
        pre[pre < np.sort(pre, axis=1)[:, -k, None]] = 0
    error = lambda factor: np.square(centered - factor * pre @ W_dec).sum()  # noqa: E731
    assert error(norms[0]) < min(error(0.999 * norms[0]), error(1.001 * norms[0]))


def test_row_directions_are_rows_times_the_inverse_covariance():
    x = ROWS * np.linspace(0.1, 3, 12, dtype=np.float32)
    covariance = x.T @ x / 100
    expected = x @ np.linalg.inv(covariance + RIDGE * np.trace(covariance) / 12 * np.eye(12))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    directions = np.asarray(row_directions(jax.random.key(0), x, 250))
    nearest = np.argmax(directions @ expected.T, 1)
    np.testing.assert_allclose(directions, expected[nearest], atol=1e-4)
    assert sorted(nearest[:100]) == list(range(100))  # no row twice before all are used


def test_three_of_four_latents_start_from_training_rows():
    mesh = sharding.make_mesh(1, 1, 8, 64)
    unit, rows = (
        initial_params(SaeConfig(k=4, init=init), 0, 64, np.zeros(12), ROWS, mesh) for init in ("unit", "rows")
    )
    directions = np.asarray(row_directions(jax.random.key(0), ROWS, 100))  # all of them, in another order
    W_dec = np.asarray(rows["W_dec_FD"])
    np.testing.assert_array_equal(W_dec[::4], unit["W_dec_FD"][::4])
    cosines = (W_dec @ directions.T).max(1).reshape(16, 4)
    assert cosines[:, 1:].min() > 0.95 > cosines[:, 0].max()


def test_rows_that_are_not_finite_are_left_out():
    x = ROWS.copy()
    x[7] = np.inf
    x[8, 3] = np.nan
    params = initial_params(SaeConfig(k=4, init="rows"), 0, 200, np.zeros(12), x, sharding.make_mesh(1, 1, 8, 200))
    np.testing.assert_allclose(np.linalg.norm(params["W_dec_FD"], axis=1), np.ones(200), rtol=1e-6)


def test_zero_rows_do_not_scale_the_encoder():
    params = initial_params(SaeConfig(k=4), 0, 64, np.zeros(12), np.zeros((3, 12)), sharding.make_mesh(1, 1, 8, 64))
    np.testing.assert_array_equal(params["W_enc_FD"], params["W_dec_FD"])


def test_geometric_median_resists_outliers():
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(300, 4)) + 3, np.full((60, 4), 1e4)]).astype(np.float32)
    median = geometric_median(rows)
    assert np.abs(median - 3).max() < 0.5
    assert bias("mean", rows).max() > 1000
    step = np.random.default_rng(1).normal(size=(20, 4)) * 0.05
    total = lambda point: np.linalg.norm(rows - point, axis=1).sum()  # noqa: E731
    assert all(total(median) <= total(median + s) for s in step)


def test_the_geometric_median_may_be_a_row():
    rows = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    np.testing.assert_allclose(geometric_median(rows), [0, 0], atol=1e-6)
    np.testing.assert_array_equal(geometric_median(np.ones((3, 2), np.float32)), [1, 1])
