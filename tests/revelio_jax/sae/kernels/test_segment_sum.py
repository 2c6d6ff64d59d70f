"""Weight gradients as sums over segments: equal to a scatter, in a fixed order, and compiled for an H100."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from revelio_jax.sae.kernels import segment_sum
from tests.helpers import h100

interpreted = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the GPU kernels need jax 0.12")


def example(rows=37, slots=3, latents=11, width=256, seed=0):
    """Return values, indices and rows. Latent 4 fires on every row, latent 7 never, and some indices are dropped."""
    rng = np.random.default_rng(seed)
    indices = rng.choice(np.setdiff1d(np.arange(latents + 2), [4, 7]), (rows, slots))
    indices[:, 1] = 4
    return (
        rng.normal(size=(rows, slots)).astype(np.float32),
        indices.astype(np.int32),
        jnp.asarray(rng.normal(size=(rows, width)), jnp.bfloat16),
    )


def expected(values, indices, rows, latents, weights=None, start=None):
    """Return the gradient and its numbers by row in float64."""
    grad = np.zeros((latents, rows.shape[1])) if start is None else np.array(start, np.float64)
    sums = np.zeros(latents)
    for row, row_indices in enumerate(indices):
        for value, index in zip(values[row], row_indices, strict=True):
            if index < latents:
                grad[index] += np.float64(value) * np.asarray(rows[row], np.float64)
                sums[index] += value
    return grad, (grad**2).sum(1), None if weights is None else (grad * weights).sum(1), sums


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("optional", [False, True])
def test_the_plain_form_is_the_sum_over_entries(optional):
    values, indices, rows = example()
    rng = np.random.default_rng(1)
    matrices = [jnp.asarray(rng.normal(size=(11, 256)), jnp.float32) for _ in range(2)] if optional else []
    same(segment_sum.xla(values, indices, rows, 11, *matrices), expected(values, indices, rows, 11, *matrices))


@interpreted
@pytest.mark.parametrize("optional", [False, True])
def test_the_kernel_is_the_sum_over_entries_also_for_hot_and_silent_latents(optional, monkeypatch):
    monkeypatch.setattr(segment_sum, "WINDOW", 8)  # so that latent 4 has whole windows, and parts before and after
    monkeypatch.setattr(segment_sum, "COLUMNS", 128)  # two tiles
    values, indices, rows = example()
    rng = np.random.default_rng(1)
    matrices = [jnp.asarray(rng.normal(size=(11, 256)), jnp.float32) for _ in range(2)] if optional else []
    kernel = jax.jit(functools.partial(segment_sum.pallas, interpret=True), static_argnums=3)
    found = kernel(values, indices, rows, 11, *matrices)
    same(found, expected(values, indices, rows, 11, *matrices))
    assert (found.grad_FD[7] == (matrices[1][7] if optional else 0)).all()
    again = kernel(values, indices, rows, 11, *matrices)
    jax.tree.map(np.testing.assert_array_equal, found, again)


@interpreted
def test_the_kernel_adds_in_the_order_of_rows():
    # In float32, 2^25 + 1 is 2^25: the sum tells the order.
    order = np.array([2.0**25, 1.0, -(2.0**25), 1.0], np.float32)
    values, indices = order[:, None], np.zeros((4, 1), np.int32)
    rows = jnp.ones((4, 128), jnp.bfloat16)
    kernel = jax.jit(lambda values: segment_sum.pallas(values, indices, rows, 1, interpret=True))
    assert (kernel(values).grad_FD == 1).all()
    assert kernel(values).sums_F[0] == 1
    assert (kernel(values[[0, 2, 1, 3]]).grad_FD == 2).all()


def test_widths_without_a_tile_are_declined():
    assert [width for width in (64, 128, 320, 640, 768, 4096) if segment_sum.supports(width)] == [128, 640, 768, 4096]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "latents", "slots", "rows"), [(768, 12288, 32, 4096), (4096, 65536, 32, 8192)])
def test_both_gradients_of_a_step_compile_for_an_h100_with_one_sort(width, latents, slots, rows):
    def both(values, grad_values, indices, errors, inputs, weights):
        decoder = segment_sum.pallas(values, indices, errors, latents, weights)
        encoder = segment_sum.pallas(grad_values, indices, inputs, latents)
        return decoder, encoder

    of_codes, matrix = (rows, slots), (rows, width)
    program = h100.compiled(
        both,
        jax.ShapeDtypeStruct(of_codes, jnp.float32),
        jax.ShapeDtypeStruct(of_codes, jnp.float32),
        jax.ShapeDtypeStruct(of_codes, jnp.int32),
        jax.ShapeDtypeStruct(matrix, jnp.bfloat16),
        jax.ShapeDtypeStruct(matrix, jnp.bfloat16),
        jax.ShapeDtypeStruct((latents, width), jnp.float32),
        mesh=h100.mesh(),
    )
    text = program.as_text()
    assert h100.kernels(program) == 4
    assert text.count(" sort(") == 1
    assert " scatter(" not in text
    # Window sums of both gradients, and less than 2 % of a gradient for the rest.
    windows = 2 * rows * slots // segment_sum.WINDOW * width * 4
    assert program.memory_analysis().temp_size_in_bytes < windows + 0.02 * latents * width * 4 + 2**23


@pytest.mark.slow
def test_the_kernel_compiles_inside_shard_map():
    mesh = h100.mesh(feature=2)

    def local(values, indices, rows, weights):
        gradient = segment_sum.pallas(values, indices, rows, 1024, weights)
        return gradient.grad_FD, jax.lax.psum(gradient.squares_F.sum(), "feature")

    program = h100.compiled(
        jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), P(), P("feature")), out_specs=(P("feature"), P())),
        jax.ShapeDtypeStruct((64, 8), jnp.float32),
        jax.ShapeDtypeStruct((64, 8), jnp.int32),
        jax.ShapeDtypeStruct((64, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((2048, 256), jnp.float32),
        mesh=mesh,
        specs=[P(), P(), P(), P("feature")],
    )
    assert h100.kernels(program) == 2
    assert "all-reduce" in program.as_text()
