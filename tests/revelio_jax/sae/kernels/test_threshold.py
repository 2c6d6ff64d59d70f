"""The threshold of top-k by bisection: exact, also for ties, and compiled for a TPU."""

import importlib.util

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from revelio_jax.sae.kernels import threshold


def kept(pre, low, last):
    """Return the dense codes from the two numbers of each row."""
    low, last = np.asarray(low)[:, None], np.asarray(last)[:, None]
    keep = (pre > low) | ((pre == low) & (np.arange(pre.shape[1]) <= last))
    return np.where(keep, np.maximum(pre, 0), 0)


def expected(pre, k):
    values, indices = jax.lax.top_k(pre, k)
    codes = np.zeros_like(pre)
    np.put_along_axis(codes, np.asarray(indices), np.maximum(values, 0), 1)
    return codes


def example(rows=11, latents=384):
    """Return rows that end inside a block, with ties, few positive values, and extreme values."""
    pre = np.random.default_rng(0).normal(size=(rows, latents)).astype(np.float32)
    pre[1] = np.round(pre[1])
    pre[2] = -np.abs(pre[2])
    pre[3, 10:] = -1
    pre[4] = 1
    pre[5, ::7] = np.inf
    pre[6] *= 1e-30
    pre[7, 100:200] = pre[7].max()
    pre[8] = 0
    return pre


interpreted = jax.jit(lambda pre, k: threshold.pallas(pre, k, interpret=True))


@pytest.mark.parametrize("form", [threshold.xla, interpreted], ids=["plain", "kernel"])
@pytest.mark.parametrize("k", [1, 32, 384])
def test_the_codes_are_those_of_top_k(form, k):
    pre = example()
    low, last = form(pre, jnp.int32(k))
    np.testing.assert_array_equal(kept(pre, low, last), expected(pre, k))


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.75, 1.0, 2.0, 2.0**20]), min_size=128, max_size=128), st.data()
)
def test_ties_keep_the_lowest_indices(values, data):
    pre, k = np.tile(np.array(values, np.float32), (8, 1)), data.draw(st.integers(1, 128))
    np.testing.assert_array_equal(kept(pre, *interpreted(pre, jnp.int32(k))), expected(pre, k))


def test_rows_that_do_not_fit_are_declined():
    assert [size for size in (100, 128, 65536, 524288, 1048576) if threshold.supports(size)] == [128, 65536, 524288]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for a TPU")
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize(("rows", "latents"), [(2048, 16384), (1001, 65536)])
def test_the_kernel_compiles_for_a_tpu(chip, rows, latents, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    mesh = jax.sharding.Mesh(topology.devices[:1], ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    program = (
        jax.jit(threshold.pallas)
        .lower(
            jax.ShapeDtypeStruct((rows, latents), jnp.float32, sharding=place),
            jax.ShapeDtypeStruct((), jnp.int32, sharding=place),
        )
        .compile()
    )
    text = program.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert " sort(" not in text
    assert program.memory_analysis().temp_size_in_bytes < 2**20
