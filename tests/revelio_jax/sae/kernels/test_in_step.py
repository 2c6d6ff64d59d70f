"""A training step with all kernels equals one with plain sparse products, and compiles for an H100."""

import jax
import numpy as np
import pytest

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.sae import initial, sharding
from revelio_jax.sae.kernels import hopper
from revelio_jax.training.step import abstract_state, initial_state, make_train_step
from tests.helpers import h100

ROWS, WIDTH, LATENTS = 8, 256, 64  # interpreting takes long
TRAIN = TrainConfig(batch_size=ROWS, learning_rate=1e-3)


def sae(products, **fields):
    return SaeConfig(
        k=4, k_aux=4, dead_after_rows=ROWS, init="unit", products=products, matmul_dtype="bfloat16", **fields
    )


@pytest.mark.parametrize("fields", [{}, {"multi_topk": 0.125}], ids=["topk", "multi_topk"])
def test_steps_with_kernels_equal_plain_steps(monkeypatch, fields):
    if jax.__version_info__ < (0, 12):
        pytest.skip(f"the kernels need jax 0.12; {jax.__version__} is installed")
    launch = hopper.launch
    monkeypatch.setattr(hopper, "launch", lambda body, out, blocks, _: launch(body, out, blocks, True))
    mesh = sharding.make_mesh(1, 1, ROWS, LATENTS)
    x = np.random.default_rng(0).normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    states, metrics = [], []
    for products in ("kernels", "sparse"):
        params = initial.initial_params(sae(products), 0, LATENTS, np.zeros(WIDTH), x[0], mesh)
        state = initial_state(params, np.zeros(WIDTH), 1.0, sae(products), TRAIN, mesh)
        train_step = make_train_step(sae(products, **fields), TRAIN, mesh)
        for x_BD in x:  # the second one with dead latents
            state, measured = train_step(state, sharding.put_batch(mesh, x_BD))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(measured))
    assert metrics[0]["aux_loss"] > 0
    for name, value in metrics[1].items():
        np.testing.assert_allclose(metrics[0][name], value, rtol=1e-3, err_msg=name)
    for name, value in states[1].params.items():
        # Adam moves by the sign of a gradient, so that a gradient near 0 may move a parameter the other way.
        assert np.median(np.abs(states[0].params[name] - value)) < 1e-6, name
        assert (np.abs(states[0].params[name] - value) < 1e-4).mean() > 0.999, name


@pytest.mark.slow
def test_a_step_with_kernels_compiles_for_an_h100():
    mesh = h100.mesh()
    options = TrainConfig(batch_size=4096)
    model = SaeConfig(k=32, k_aux=0, products="kernels", matmul_dtype="bfloat16")
    state = abstract_state(12288, 768, model, options, mesh)
    place = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    x_BD = jax.ShapeDtypeStruct((4096, 768), np.float32, sharding=place)
    program = make_train_step(model, options, mesh).lower(state, x_BD).compile()
    assert h100.kernels(program) == 7  # decoding, two of each gradient, two updates
