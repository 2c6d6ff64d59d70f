"""The optimizer's pass over rows: equal to optax, in place, and compiled for an H100."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from revelio_jax.sae import initial
from revelio_jax.sae.kernels import optimizer_rows
from tests.helpers import h100

ADAM = optimizer_rows.Adam(eps=1e-6)
interpreted = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the GPU kernels need jax 0.12")


def example(unit, moment="float32", rows=5, width=256):
    """Return the arrays of a pass before its scalars. The last row of the weights is 0."""
    rng = np.random.default_rng(0)
    matrix = lambda: jnp.asarray(rng.normal(size=(rows, width)), jnp.float32)  # noqa: E731
    weights = initial.unit_rows(matrix()) if unit else matrix()
    weights = weights.at[-1].set(0)
    grad = matrix()
    along = (grad * weights).sum(1) if unit else None
    return weights, matrix().astype(moment), jnp.square(matrix()) + 0.01, grad, along


def scalars(scale=0.5, learning_rate=0.01, count=3):
    return jnp.float32(scale), jnp.float32(learning_rate), jnp.int32(count)


@pytest.mark.parametrize("unit", [False, True])
def test_the_plain_form_is_the_update_of_the_training_step(unit):
    weights, _, _, grad, along = example(unit)
    optimizer = optax.adam(0.01, eps=ADAM.eps)
    state, wanted, first = optimizer.init(weights), weights, jnp.zeros_like(weights)
    found = optimizer_rows.Rows(weights, first, first, weights)
    for count in (1, 2, 3):
        along = (grad * found.W_FD).sum(1) if unit else None
        found = optimizer_rows.xla(*found[:3], grad, along, *scalars(count=count), ADAM)
        clipped = 0.5 * (grad - (grad * wanted).sum(1, keepdims=True) * wanted if unit else grad)
        updates, state = optimizer.update(clipped, state)
        wanted = optax.apply_updates(wanted, updates)
        wanted = initial.unit_rows(wanted) if unit else wanted
        np.testing.assert_allclose(found.W_FD, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.rounded_FD, found.W_FD.astype(jnp.bfloat16))
    np.testing.assert_allclose(found.m_FD, state[0].mu, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.v_FD, state[0].nu, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("moment", ["float32", "bfloat16"])
def test_the_kernel_equals_the_plain_form(unit, moment, monkeypatch):
    monkeypatch.setattr(optimizer_rows, "COLUMNS", 128)  # two tiles a row
    arrays = example(unit, moment)
    wanted = optimizer_rows.xla(*arrays, *scalars(), ADAM)
    found = jax.jit(functools.partial(optimizer_rows.pallas, adam=ADAM, interpret=True))(*arrays, *scalars())
    assert found.m_FD.dtype == moment
    assert found.rounded_FD.dtype == jnp.bfloat16
    for name, a, b in zip(found._fields, found, wanted, strict=True):
        rough = a.dtype == jnp.bfloat16  # a rounding may fall to the other side
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=2**-7 if rough else 1e-5, atol=1e-6, err_msg=name)
    if unit:
        np.testing.assert_allclose(np.linalg.norm(found.W_FD, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("form", ["xla", pytest.param("pallas", marks=interpreted)])
def test_a_gradient_that_is_not_finite_counts_as_zero(form):
    weights, first, second, grad, along = example(True)
    grad, along = grad.at[0, 0].set(jnp.nan), along.at[0].set(jnp.nan)
    function = functools.partial(getattr(optimizer_rows, form), adam=ADAM)
    function = functools.partial(function, interpret=True) if form == "pallas" else function
    found = jax.jit(function)(weights, first, second, grad, along, *scalars(scale=0))
    np.testing.assert_allclose(found.m_FD, 0.9 * first, rtol=1e-6)
    np.testing.assert_allclose(found.v_FD, 0.999 * second, rtol=1e-6)
    assert jnp.isfinite(found.W_FD).all()


def test_widths_without_a_tile_are_declined():
    assert [width for width in (64, 320, 640, 4096, 32768) if optimizer_rows.supports(width)] == [640, 4096]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "latents"), [(768, 12288), (4096, 65536)])
@pytest.mark.parametrize("unit", [False, True])
def test_the_kernel_updates_in_place_on_an_h100(width, latents, unit):
    mesh, matrix, scalar = h100.mesh(), (latents, width), jax.ShapeDtypeStruct((), jnp.float32)

    def update(weights, first, second, grad, along, scale, rate, count):
        along = along if unit else None
        return optimizer_rows.pallas(weights, first, second, grad, along, scale, rate, count, ADAM)

    program = h100.compiled(
        update,
        *[jax.ShapeDtypeStruct(matrix, jnp.float32)] * 4,
        jax.ShapeDtypeStruct((latents,), jnp.float32),
        scalar,
        scalar,
        jax.ShapeDtypeStruct((), jnp.int32),
        mesh=mesh,
        donate=(0, 1, 2),
    )
    memory = program.memory_analysis()
    assert h100.kernels(program) == 1
    assert memory.alias_size_in_bytes >= 3 * 4 * latents * width
    assert memory.temp_size_in_bytes < 2**20


@pytest.mark.slow
def test_the_kernel_compiles_for_rows_split_over_devices():
    mesh, matrix = h100.mesh(feature=2), jax.ShapeDtypeStruct((256, 256), jnp.float32)
    rows = P("feature")

    def local(weights, first, second, grad):
        return optimizer_rows.pallas(weights, first, second, grad, None, *scalars(), ADAM)

    # Arrays that are updated in place are references, for which shard_map cannot check what varies.
    split = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 4, out_specs=rows, check_vma=False)
    program = h100.compiled(split, *[matrix] * 4, mesh=mesh, specs=[rows] * 4, donate=(0, 1, 2))
    assert h100.kernels(program) == 1
