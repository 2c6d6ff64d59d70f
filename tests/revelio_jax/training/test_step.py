"""One training step: dead counters, unit decoder rows, and the same result on every mesh."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.planning import hlo
from revelio_jax.sae import initial, reference, sharding
from revelio_jax.training.optimizer import schedule
from revelio_jax.training.step import abstract_state, gradients, initial_state, make_train_step

ROWS, WIDTH, LATENTS = 32, 8, 64
SAE = SaeConfig(k=4, k_aux=16, dead_after_rows=3 * ROWS)
TRAIN = TrainConfig(batch_size=ROWS, learning_rate=1e-2)


def begin(mesh):
    params = initial.initial_params(SAE, 0, LATENTS, np.zeros(WIDTH), batch(0), mesh)
    state = initial_state(params, np.ones(WIDTH), 2.0, SAE, TRAIN, mesh)
    return state, make_train_step(SAE, TRAIN, mesh)


def batch(seed):
    # Few directions, so that some latents never fire.
    codes = np.random.default_rng(seed).normal(size=(ROWS, 3))
    return (codes @ np.random.default_rng(99).normal(size=(3, WIDTH))).astype(np.float32)


def run(data, feature, steps):
    mesh = sharding.make_mesh(data, feature, ROWS, LATENTS)
    state, train_step = begin(mesh)
    for seed in range(steps):
        state, metrics = train_step(state, sharding.put_batch(mesh, batch(seed)))
    return jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def on_one_device():
    return run(1, 1, 20)


def test_decoder_rows_stay_unit(on_one_device):
    state, _ = on_one_device
    np.testing.assert_allclose(np.linalg.norm(state.params["W_dec_FD"], axis=1), np.ones(LATENTS), rtol=1e-5)
    assert np.ptp(np.linalg.norm(state.params["W_enc_FD"], axis=1)) > 1e-3


def test_some_latents_are_dead_and_have_an_aux_loss(on_one_device):
    state, metrics = on_one_device
    assert state.step == 20
    assert 0 < metrics["dead_fraction"] < 1
    assert metrics["aux_loss"] > 0
    assert 0 < metrics["l0"] <= SAE.k


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1), (4, 2), (2, 4), (1, 8)], ids=str)
def test_twenty_steps_on_a_mesh_equal_those_on_one_device(on_one_device, mesh):
    state, metrics = run(*mesh, 20)
    expected, expected_metrics = on_one_device
    for name, value in expected.params.items():
        np.testing.assert_allclose(state.params[name], value, atol=2e-4, err_msg=name)
    np.testing.assert_array_equal(state.rows_since_fired_F, expected.rows_since_fired_F)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-3, err_msg=name)


def test_rows_since_fired_counts_and_saturates():
    mesh = sharding.make_mesh(1, 1, ROWS, LATENTS)
    state, train_step = begin(mesh)
    x = batch(0)
    params = jax.device_get(state.params)
    fired = (reference.encode(params, (x - 1) / 2, SAE.k) > SAE.dead_threshold).any(0)
    for count in (1, 2, 3, 4, 5):
        state, _ = train_step(state, sharding.put_batch(mesh, x))
        if count == 1:
            np.testing.assert_array_equal(state.rows_since_fired_F, np.where(fired, 0, ROWS))
    never = np.asarray(state.rows_since_fired_F).max()
    assert never == SAE.dead_after_rows + ROWS  # saturated, so a long run does not overflow


def test_gradients_along_decoder_rows_are_removed_row_by_row():
    """Adam's first moments after one step are 0.1 times the gradients, clipped."""
    mesh = sharding.make_mesh(1, 1, ROWS, LATENTS)
    state, train_step = begin(mesh)
    params, x = jax.device_get(state.params), (batch(0) - 1) / 2
    grads, _, _ = jax.jit(lambda: gradients(params, np.zeros(LATENTS, bool), x, SAE.k, SAE, mesh))()
    by_param = {name: np.asarray(grad, np.float64) for name, grad in grads.by_param.items()}
    W, grad = params["W_dec_FD"], by_param["W_dec_FD"]
    rest = grad - (grad * W).sum(1, keepdims=True) * W
    norm = np.sqrt(sum(np.square(g).sum() for g in (by_param | {"W_dec_FD": rest}).values()))
    state, metrics = train_step(state, sharding.put_batch(mesh, batch(0)))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    moments = np.asarray(optax.tree_utils.tree_get(state.opt_state, "mu")["W_dec_FD"])
    np.testing.assert_allclose(moments, 0.1 * TRAIN.clip_norm / norm * rest, atol=1e-6 * np.abs(moments).max())


def test_rounded_matrices_follow_the_parameters():
    mesh = sharding.make_mesh(2, 4, ROWS, LATENTS)
    sae = dataclasses.replace(SAE, matmul_dtype="bfloat16")
    params = initial.initial_params(sae, 0, LATENTS, np.zeros(WIDTH), batch(0), mesh)
    state = initial_state(params, np.ones(WIDTH), 2.0, sae, TRAIN, mesh)
    train_step = make_train_step(sae, TRAIN, mesh)
    for _ in range(2):
        for name, matrix in state.rounded.items():
            np.testing.assert_array_equal(matrix, state.params[name].astype("bfloat16"))
        state, metrics = train_step(state, sharding.put_batch(mesh, batch(0)))
    assert np.isfinite(metrics["loss"])


def test_schedule_warms_up_and_decays_linearly():
    rate = schedule(TrainConfig(steps=100, learning_rate=2.0, warmup_steps=10, decay_share=0.5))
    steps = {0: 0.2, 9: 2.0, 49: 2.0, 50: 2.0, 75: 1.0, 99: 0.04}
    for step, expected in steps.items():
        assert float(rate(step)) == pytest.approx(expected)
    assert schedule(TrainConfig(learning_rate=2.0))(10**6) == 2.0


def test_moments_are_sharded_like_their_parameters():
    mesh = sharding.make_mesh(2, 4, ROWS, LATENTS)
    state, _ = begin(mesh)
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    for name, value in state.params.items():
        assert moments[name].sharding == value.sharding, name


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (2, 4)], ids=str)
def test_the_step_keeps_types_and_shardings_of_the_state(mesh):
    """Otherwise the second step would be traced, and perhaps compiled, again."""
    mesh = sharding.make_mesh(*mesh, ROWS, LATENTS)
    state, train_step = begin(mesh)
    kinds = [jax.tree.map(lambda x: (x.aval, x.weak_type, x.committed, x.sharding), state)]
    for seed in range(2):
        state, _ = train_step(state, sharding.put_batch(mesh, batch(seed)))
        kinds.append(jax.tree.map(lambda x: (x.aval, x.weak_type, x.committed, x.sharding), state))
    assert kinds[0] == kinds[1] == kinds[2]
    assert train_step._cache_size() == 1


def sent_bytes(latents, data, feature, sae):
    """Return the bytes that the collectives of a compiled step send per device."""
    mesh = sharding.make_mesh(data, feature, ROWS, latents)
    state = abstract_state(latents, WIDTH, sae, TRAIN, mesh)
    place = jax.sharding.NamedSharding(mesh, sharding.HOST_BATCH)
    x_BD = jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32, sharding=place)
    compiled = make_train_step(sae, TRAIN, mesh).lower(state, x_BD).compile()
    return hlo.cost(compiled.as_text(), mesh.size, max).sent


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1), (2, 4), (1, 8)], ids=str)
def test_communication_does_not_grow_with_the_latents(mesh):
    sae = SaeConfig(k=4, k_aux=64)
    few, many = sent_bytes(256, *mesh, sae), sent_bytes(1024, *mesh, sae)
    assert 0 < many <= few
