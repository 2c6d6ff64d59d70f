"""The error of a reconstruction and its dot products in one pass: equal to plain sums, and compiled for an H100."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revelio_jax.sae.kernels import decode_error
from tests.helpers import h100

interpreted = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the GPU kernels need jax 0.12")


def example(rows=5, slots=3, latents=7, width=512, dtype=jnp.bfloat16):
    """Return the arguments. A row repeats a latent, and a row has an unused slot."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rows, slots)).astype(np.float32)
    indices = rng.integers(0, latents, (rows, slots)).astype(np.int32)
    indices[0] = 2
    values[1, 2] = 0
    return (
        values,
        indices,
        jnp.asarray(rng.normal(size=(latents, width)), dtype),
        rng.normal(size=(rows, width)).astype(np.float32),
        rng.normal(size=width).astype(np.float32),
    )


def check(found, values, indices, decoder, x, bias):
    selected = np.asarray(decoder, np.float64)[indices]
    error = x.astype(np.float64) - bias - (values[:, :, None] * selected).sum(1)
    np.testing.assert_allclose(found.error_BD, error, atol=1e-5)
    np.testing.assert_allclose(found.dots_BK, (error[:, None] * selected).sum(2), atol=2e-4)
    np.testing.assert_allclose(found.squares_B, (error**2).sum(1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_plain_form_is_the_error_of_the_reconstruction(dtype):
    arguments = example(dtype=dtype)
    check(decode_error.xla(*arguments), *arguments)


@interpreted
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_kernel_is_the_error_of_the_reconstruction(dtype, monkeypatch):
    monkeypatch.setattr(decode_error, "HELD", 3 * 256)  # two tiles
    arguments = example(dtype=dtype)
    check(jax.jit(functools.partial(decode_error.pallas, interpret=True))(*arguments), *arguments)


def test_shapes_without_a_tile_are_declined():
    shapes = [(640, 32), (768, 32), (4096, 32), (4096, 33)]
    assert [shape for shape in shapes if decode_error.supports(*shape)] == [(768, 32), (4096, 32)]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "latents", "slots", "rows"), [(768, 12288, 32, 4096), (4096, 65536, 32, 8192)])
def test_the_kernel_compiles_for_an_h100_without_an_array_of_selected_rows(width, latents, slots, rows):
    program = h100.compiled(
        decode_error.pallas,
        jax.ShapeDtypeStruct((rows, slots), jnp.float32),
        jax.ShapeDtypeStruct((rows, slots), jnp.int32),
        jax.ShapeDtypeStruct((latents, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((width,), jnp.float32),
        mesh=h100.mesh(),
    )
    assert h100.kernels(program) == 1
    assert program.memory_analysis().temp_size_in_bytes <= 16 * rows * slots * 4  # partial dot products
