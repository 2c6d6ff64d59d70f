"""Sparse products, AuxK and sharding give the loss and the gradients of the reference definition."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.config import SaeConfig
from revelio_jax.sae import reference, sharding
from revelio_jax.training.step import gradients


def example(rows, width, latents, seed=0):
    """Return untied parameters with biases, and rows away from the origin."""
    random = np.random.default_rng(seed)
    shapes = {
        "W_enc_FD": (latents, width), "b_enc_F": (latents,), "W_dec_FD": (latents, width), "b_dec_D": (width,)
    }  # fmt: skip
    params = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return params, (random.normal(size=(rows, width)) + 1).astype(np.float32)


def assert_equals_reference(params, x, dead, sae, data=1, feature=1):
    mesh = sharding.make_mesh(data, feature, len(x), len(dead))
    sharded = jax.device_put(params, sharding.named_shardings(mesh, sharding.params(sae.architecture)))
    run = jax.jit(functools.partial(gradients, k=sae.k, sae=sae, mesh=mesh))
    grads, _, metrics = run(sharded, dead, sharding.put_batch(mesh, x))
    plain = jax.jit(jax.value_and_grad(functools.partial(reference.loss, sae=sae), has_aux=True))
    (loss, aux), expected = plain(params, x, dead)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["aux_loss"], aux, rtol=1e-5)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(grads.by_param[name], value, atol=1e-5 * scale, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 9),
    latents=st.integers(3, 70),
    k=st.integers(1, 3),
    share=st.sampled_from([0, 0.1, 1]),
    seed=st.integers(0, 99),
)
def test_gradients_equal_the_reference(rows, width, latents, k, share, seed):
    params, x = example(rows + 1, width, latents, seed)
    dead = np.random.default_rng(seed).random(latents) < share
    assert_equals_reference(params, x, dead, SaeConfig(k=k, k_aux=20, aux_alpha=0.7))


@pytest.mark.slow
# k_aux is 8: no dead latent, fewer than k_aux, more, all.
@pytest.mark.parametrize("count", [0, 3, 20, 64])
def test_gradients_equal_the_reference_for_any_number_of_dead_latents(count):
    params, x = example(32, 12, 64)
    assert_equals_reference(params, x, np.arange(64)[::-1] < count, SaeConfig(k=4, k_aux=8, aux_alpha=0.7))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1), (4, 2), (2, 4), (1, 8)], ids=str)
def test_gradients_equal_the_reference_on_a_mesh(mesh):
    params, x = example(32, 12, 64)
    dead = np.arange(64) < 20  # only on the first devices
    assert_equals_reference(params, x, dead, SaeConfig(k=4, k_aux=8, aux_alpha=0.7), *mesh)


VARIANTS = {
    "batch_topk": SaeConfig(architecture="batch_topk", k=4, k_aux=8, aux_alpha=0.7),
    "dense": SaeConfig(architecture="dense", k=4, k_aux=0),
    "matryoshka": SaeConfig(k=4, k_aux=8, aux_alpha=0.7, prefixes=(0.25, 0.5, 1.0)),
    "matryoshka of batch_topk": SaeConfig(architecture="batch_topk", k=4, k_aux=0, prefixes=(0.125, 1.0)),
    "multi_topk": SaeConfig(k=4, k_aux=8, aux_alpha=0.7, multi_topk=0.125),
    "multi_topk of batch_topk": SaeConfig(architecture="batch_topk", k=4, k_aux=0, multi_topk=0.125),
    "encode_chunk": SaeConfig(k=4, k_aux=8, aux_alpha=0.7, encode_chunk=8),
    **{
        f"dense products, {name}": SaeConfig(k=4, k_aux=8, aux_alpha=0.7, products="dense", **fields)
        for name, fields in {
            "topk": {},
            "batch_topk": {"architecture": "batch_topk"},
            "matryoshka": {"prefixes": (0.25, 0.5, 1.0)},
            "multi_topk": {"multi_topk": 0.125},
        }.items()
    },
    "atomic products": SaeConfig(k=4, k_aux=8, aux_alpha=0.7, products="atomic"),
    "bigger encode_chunk": SaeConfig(k=4, k_aux=0, encode_chunk=48),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_gradients_of_variants_equal_the_reference(name, mesh):
    params, x = example(32, 12, 96)
    assert_equals_reference(params, x, np.arange(96) < 20, VARIANTS[name], *mesh)


def test_aux_k_changes_nothing_without_dead_latents():
    params, x = example(32, 12, 64)
    mesh = sharding.make_mesh(1, 1, 32, 64)
    none = np.zeros(64, bool)
    with_aux, _, metrics = jax.jit(lambda p: gradients(p, none, x, 4, SaeConfig(k=4, k_aux=8), mesh))(params)
    without, _, _ = jax.jit(lambda p: gradients(p, none, x, 4, SaeConfig(k=4, k_aux=0), mesh))(params)
    assert metrics["aux_loss"] == 0
    assert metrics["loss"] == metrics["fvu"]
    for name in params:
        np.testing.assert_array_equal(with_aux.by_param[name], without.by_param[name])


@pytest.mark.parametrize("count", [3, 40], ids=["few", "many"])  # the two branches of sae.aux_k
def test_aux_k_fits_dead_latents_to_the_error_and_only_raises_them(count):
    """Random directions overshoot the error, and plain AuxK would then lower them until they never fire again."""
    params, x = example(64, 12, 64)
    mesh = sharding.make_mesh(1, 1, 64, 64)
    dead = np.arange(64) < count
    params |= {"W_enc_FD": 0.05 * params["W_dec_FD"], "b_enc_F": np.zeros(64, np.float32)}
    run = lambda k_aux: jax.jit(  # noqa: E731
        lambda p: gradients(p, dead, x, 4, SaeConfig(k=4, k_aux=k_aux, aux_alpha=0.7), mesh)
    )(params)
    (grads, _, metrics), (without, _, _) = run(8), run(0)

    params, x = {name: value.astype(np.float64) for name, value in params.items()}, x.astype(np.float64)
    positive = np.maximum((x - params["b_dec_D"]) @ params["W_enc_FD"].T + params["b_enc_F"], 0)
    largest = lambda z, k: np.where(z >= np.sort(z, 1)[:, -k, None], z, 0)  # noqa: E731
    error = x - params["b_dec_D"] - largest(positive, 4) @ params["W_dec_FD"]
    error_hat = largest(positive * dead, min(8, count)) @ params["W_dec_FD"]
    losses = [np.square(error - scale * error_hat).sum() for scale in np.linspace(0, 1, 1001)]
    np.testing.assert_allclose(metrics["aux_loss"], min(losses) / np.square(x - x.mean(0)).sum(), rtol=1e-5)
    assert min(losses) < min(0.999 * losses[0], 0.9 * losses[-1])  # neither s = 0 nor s = 1

    of_aux = np.asarray(grads.by_param["b_enc_F"]) - np.asarray(without.by_param["b_enc_F"])
    np.testing.assert_allclose(of_aux[~dead], 0, atol=1e-6)
    assert (of_aux[dead] < 1e-6).all()
    assert (of_aux[dead] < -1e-4).any()


def test_the_error_is_taken_to_the_row_with_its_bias():
    """A perfect bias reconstructs a constant batch, so no bias is missing or counted twice."""
    params, _ = example(8, 6, 32)
    params["b_enc_F"] -= 100  # nothing fires
    x = np.tile(params["b_dec_D"], (8, 1)) + np.eye(8, 6, dtype=np.float32) * 1e-3
    mesh = sharding.make_mesh(1, 1, 8, 32)
    _, fired, metrics = jax.jit(lambda p: gradients(p, np.zeros(32, bool), x, 4, SaeConfig(k=4), mesh))(params)
    assert metrics["fvu"] < 1.3  # without a bias, or with it twice, it would be 10^6
    assert metrics["l0"] == 0
    assert not fired.any()  # slots with value 0 do not count
