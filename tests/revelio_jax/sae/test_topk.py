"""Exact top-k: the same as lax.top_k, ties included, on one device and over a split row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from revelio_jax import sharding
from revelio_jax.sae.topk import survivors, top_k, tournament, two_stages


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([(32, 4), (256, 4), (256, 15), (320, 16), (100, 5), (16, 16), (7, 7)]),
    st.integers(1, 5),
    st.integers(1, 40),  # few distinct values: ties everywhere
    st.integers(0, 2**31),
)
def test_equals_lax_top_k(shape, rows, distinct, seed):
    width, k = shape
    x = np.random.default_rng(seed).integers(-distinct, distinct, (rows, width)).astype(np.float32)
    bias = np.random.default_rng(seed + 1).integers(-2, 3, width).astype(np.float32)
    expected_values, expected_indices = jax.lax.top_k(x + bias, k)
    forms = [top_k, two_stages, tournament] if width % 16 == 0 and width // 16 > k else [top_k]
    for form in forms:
        values, indices = form(jnp.asarray(x), k=k, bias_F=jnp.asarray(bias))
        np.testing.assert_array_equal(values, expected_values)
        np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("feature", [1, 2, 8])
@pytest.mark.parametrize("distinct", [1, 3, 10**6])
def test_exactly_k_survive_over_devices_and_they_are_the_first(feature, distinct):
    rows, latents, k = 16, 64, 5
    x = np.random.default_rng(0).integers(0, distinct, (rows, latents)).astype(np.float32)
    mesh = sharding.make_mesh(1, feature, rows, latents)

    def local(x):
        values, indices = top_k(x, k)
        keep = survivors(values, k, "feature")
        return jax.numpy.zeros_like(x, bool).at[np.arange(rows)[:, None], indices].set(keep)

    chosen = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=P(None, "feature"), out_specs=P(None, "feature"))
    )(x)
    expected = np.zeros((rows, latents), bool)
    np.put_along_axis(expected, np.asarray(jax.lax.top_k(x, k)[1]), True, 1)
    np.testing.assert_array_equal(chosen, expected)
