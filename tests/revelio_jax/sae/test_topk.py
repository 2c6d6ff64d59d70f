"""Exact top-k equals lax.top_k, including ties, on one device and on split rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from revelio_jax.sae import sharding
from revelio_jax.sae.topk import kth_largest, survivors, top_k, tournament, two_stages


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([(32, 4), (256, 4), (256, 15), (320, 16), (100, 5), (16, 16), (7, 7)]),
    st.integers(1, 5),
    st.integers(1, 40),  # few distinct values: ties everywhere
    st.integers(0, 2**31),
)
def test_every_form_equals_lax_top_k(shape, rows, distinct, seed):
    width, k = shape
    x = np.random.default_rng(seed).integers(-distinct, distinct, (rows, width)).astype(np.float32)
    bias = np.random.default_rng(seed + 1).integers(-2, 3, width).astype(np.float32)
    expected_values, expected_indices = jax.lax.top_k(x + bias, k)
    two = [functools.partial(two_stages, strided=strided) for strided in (True, False)]
    forms = [top_k, tournament, *two] if width % 16 == 0 and width // 16 > k else [top_k]
    for form in forms:
        values, indices = form(jnp.asarray(x), k=k, bias_F=jnp.asarray(bias))
        np.testing.assert_array_equal(values, expected_values)
        matters = np.asarray(expected_values) > (0 if form in two else -np.inf)
        np.testing.assert_array_equal(np.asarray(indices)[matters], np.asarray(expected_indices)[matters])


@pytest.mark.parametrize("feature", [1, 2, 8])
@pytest.mark.parametrize("distinct", [1, 3, 10**6])
def test_survivors_over_devices_are_the_first_k_largest(feature, distinct):
    rows, latents, k = 16, 64, 5
    x = np.random.default_rng(0).integers(0, distinct, (rows, latents)).astype(np.float32)
    mesh = sharding.make_mesh(1, feature, rows, latents)

    def local(x):
        values, indices = top_k(x, k)
        keep = survivors(values, k, "feature")
        return jax.numpy.zeros_like(x, bool).at[np.arange(rows)[:, None], indices].set(keep)

    chosen = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P(None, "feature"), out_specs=P(None, "feature")))(x)
    expected = np.zeros((rows, latents), bool)
    np.put_along_axis(expected, np.asarray(jax.lax.top_k(x, k)[1]), True, 1)
    np.testing.assert_array_equal(chosen, expected)


@functools.partial(jax.jit, static_argnums=2)
def kth_largest_here(x, k, axis):
    return kth_largest(x, k, axis, lambda count: count)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from([0.0, 1.0, 1.0000001, 3e38]) | st.floats(0, width=32, allow_infinity=True),
        min_size=12,
        max_size=12,
    ),
    st.integers(1, 16),
)
def test_kth_largest_equals_a_sort(values, k):
    x = np.array(values, np.float32).reshape(3, 4)
    for axis, elements in ((None, x.reshape(1, -1)), (1, x), (0, x.T)):
        falling = -np.sort(-elements, 1)
        expected = falling[:, k - 1] if k <= falling.shape[1] else np.zeros(len(falling), np.float32)
        result = np.asarray(kth_largest_here(x, k, axis))
        assert result.ndim == 2
        np.testing.assert_array_equal(result.reshape(-1), expected)


@pytest.mark.parametrize("mesh", [(1, 8), (2, 4), (8, 1)], ids=str)
@pytest.mark.parametrize("k", [1, 20, 200])
def test_kth_largest_over_devices_equals_a_sort(mesh, k):
    x = np.maximum(np.random.default_rng(0).integers(-8, 8, (16, 32)), 0).astype(np.float32)
    mesh = sharding.make_mesh(*mesh, 16, 32)
    local = lambda x: kth_largest(x, k, None, sharding.total)  # noqa: E731
    result = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data", "feature"), out_specs=P()))(x)
    np.testing.assert_array_equal(result, [[np.sort(x, axis=None)[-k]]])
