"""A training step with kernels equals one with plain products, and compiles for an H100 and for a TPU."""

import functools
import importlib.util

import jax
import numpy as np
import pytest

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.planning.devices import topology_devices
from revelio_jax.sae import initial, sharding
from revelio_jax.sae.kernels import hopper, threshold
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


@pytest.mark.parametrize("mesh", [(1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize(
    "fields",
    [{}, {"multi_topk": 0.125}, {"k_start": 8, "k_anneal_steps": 4}, {"prefixes": (0.5, 1.0)}, {"k_aux": 100}],
    ids=["topk", "multi_topk", "annealed", "prefixes", "more k_aux than latents"],
)
def test_steps_with_the_threshold_equal_dense_steps(monkeypatch, fields, mesh):
    monkeypatch.setattr(threshold, "pallas", functools.partial(threshold.pallas, interpret=True))
    rows, width, latents = 16, 4, 128
    mesh = sharding.make_mesh(*mesh, rows, latents)
    random = np.random.default_rng(0)
    x = random.integers(-1, 2, (2, rows, width)).astype(np.float32)  # few values, so that many latents are equal
    params = {"W_enc_FD": random.integers(-1, 2, (latents, width)), "W_dec_FD": random.normal(size=(latents, width))}
    params |= {"b_enc_F": random.integers(-1, 2, latents), "b_dec_D": np.zeros(width)}
    train = TrainConfig(batch_size=rows)
    states = []
    for products in ("threshold", "dense"):
        model = SaeConfig(**{"k": 4, "k_aux": 4, "dead_after_rows": rows, "products": products} | fields)
        own = {name: jax.numpy.array(value, np.float32) for name, value in params.items()}
        state = initial_state(own, np.zeros(width), 1.0, model, train, mesh)
        train_step = make_train_step(model, train, mesh)
        for x_BD in x:  # the second one with dead latents
            state, metrics = train_step(state, sharding.put_batch(mesh, x_BD))
        states.append(jax.device_get((state, metrics)))
    assert states[0][1]["aux_loss"] > 0
    # The codes have equal bits (tests of codes); XLA may fuse their products in another way.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-10), *states)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for a TPU")
def test_a_step_with_the_threshold_compiles_for_a_tpu_without_a_sort():
    rows, width, latents = 1024, 256, 4096
    mesh = sharding.make_mesh(1, 1, rows, latents, topology_devices("v5e:1x1"))
    options, place = TrainConfig(batch_size=rows), jax.sharding.NamedSharding(mesh, sharding.BATCH)
    x_BD = jax.ShapeDtypeStruct((rows, width), np.float32, sharding=place)
    programs = []
    for products in ("threshold", "dense"):
        model = SaeConfig(k=32, k_aux=0, products=products)
        state = abstract_state(latents, width, model, options, mesh)
        programs.append(make_train_step(model, options, mesh).lower(state, x_BD).compile())
    text, plain = (program.as_text() for program in programs)
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert " sort(" not in text
    assert " sort(" in plain
    temporaries = [program.memory_analysis().temp_size_in_bytes for program in programs]
    assert temporaries[0] < temporaries[1]


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
