"""JumpReLU: values and the gradients of arXiv 2407.14435 (equations 11 and 12), computed in numpy."""

import functools

import jax
import numpy as np
import pytest

from revelio_jax.config import SaeConfig
from revelio_jax.sae import jump, sharding
from revelio_jax.training.step import gradients

BANDWIDTH = 0.3


def kernel(x, threshold, bandwidth=BANDWIDTH):
    """Return the rectangle K((x - threshold) / bandwidth)."""
    return (np.abs((x - threshold) / bandwidth) < 0.5).astype(float)


@pytest.fixture(scope="module")
def example():
    random = np.random.default_rng(0)
    x, threshold = random.normal(size=(200, 6)), random.uniform(0.05, 0.5, 6)
    upstream = random.normal(size=(200, 6))
    near = kernel(x, threshold)
    assert 0.1 < near.mean() < 0.5
    return [a.astype(np.float32) for a in (x, threshold, upstream)]


def test_relu_and_its_gradients_follow_the_paper(example):
    x, threshold, upstream = example
    value, pull = jax.vjp(lambda x, threshold: jump.relu(x, threshold, BANDWIDTH), x, threshold)
    by_x, by_threshold = pull(upstream)
    np.testing.assert_array_equal(value, x * (x > threshold))
    np.testing.assert_array_equal(by_x, upstream * (x > threshold))
    expected = (-threshold / BANDWIDTH * kernel(x, threshold) * upstream).sum(0)
    np.testing.assert_allclose(by_threshold, expected, rtol=1e-4, atol=1e-5)


def test_fires_and_its_gradients_follow_the_paper(example):
    x, threshold, upstream = example
    value, pull = jax.vjp(lambda x, threshold: jump.fires(x, threshold, BANDWIDTH), x, threshold)
    by_x, by_threshold = pull(upstream)
    np.testing.assert_array_equal(value, x > threshold)
    np.testing.assert_array_equal(by_x, np.zeros_like(x))
    expected = (-1 / BANDWIDTH * kernel(x, threshold) * upstream).sum(0)
    np.testing.assert_allclose(by_threshold, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_gradients_of_the_loss_equal_explicit_formulas(mesh):
    """FVU + coefficient (L0 / k - 1)^2, differentiated by hand, with thresholds below the bandwidth."""
    sae = SaeConfig(architecture="jumprelu", k=4, k_aux=0, jump_bandwidth=0.5, l0_coefficient=0.7)
    random = np.random.default_rng(1)
    W_enc, W_dec = random.normal(size=(2, 64, 12)) / 4
    b_enc, b_dec, x = random.normal(size=64) / 4, random.normal(size=12), random.normal(size=(32, 12)) + 1
    log_threshold = np.log(random.uniform(0.05, 0.4, 64))

    threshold, pre = np.exp(log_threshold), (x - b_dec) @ W_enc.T + b_enc
    fires = pre > threshold
    error = x - (pre * fires) @ W_dec - b_dec
    deviation = np.square(x - x.mean(0)).sum()
    excess = fires.sum() / len(x) / sae.k - 1
    by_z = -2 / deviation * error @ W_dec.T
    by_pre = by_z * fires
    near = kernel(pre, threshold, sae.jump_bandwidth)
    by_threshold = (-threshold / sae.jump_bandwidth * near * by_z).sum(0)
    by_l0 = sae.l0_coefficient * 2 * excess / sae.k / len(x)
    by_threshold += by_l0 * (-near / sae.jump_bandwidth).sum(0)
    expected = {
        "W_enc_FD": by_pre.T @ (x - b_dec),
        "b_enc_F": by_pre.sum(0),
        "W_dec_FD": (pre * fires).T @ (-2 / deviation * error),
        "b_dec_D": (-2 / deviation * error).sum(0) - by_pre.sum(0) @ W_enc,
        "log_threshold_F": by_threshold * threshold,
    }

    values = (W_enc, b_enc, W_dec, b_dec, log_threshold)
    params = {name: value.astype(np.float32) for name, value in zip(expected, values, strict=True)}
    placed = sharding.make_mesh(*mesh, 32, 64)
    params = jax.device_put(params, sharding.named_shardings(placed, sharding.params("jumprelu")))
    run = jax.jit(functools.partial(gradients, k=sae.k, sae=sae, mesh=placed))
    rows = sharding.put_batch(placed, x.astype(np.float32))
    grads, _, metrics = run(params, np.zeros(64, bool), rows)

    loss = np.square(error).sum() / deviation + sae.l0_coefficient * excess**2
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["l0"], fires.sum() / len(x))
    for name, value in expected.items():
        np.testing.assert_allclose(
            grads.by_param[name], value, atol=1e-5 * np.abs(value).max(), rtol=1e-3, err_msg=name
        )
