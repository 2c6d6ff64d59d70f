"""A code as a matrix has exactly the latents and values of its slots, also where values are equal."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from revelio_jax.config import SaeConfig
from revelio_jax.errors import InputError
from revelio_jax.sae import SparseAutoencoder, losses, sharding
from revelio_jax.sae.kernels import threshold

ROWS, WIDTH, LATENTS = 16, 5, 128
VARIANTS = {
    "topk": {},
    "batch_topk": {"architecture": "batch_topk"},
    "multi_topk": {"multi_topk": 0.125},
    "multi_topk of batch_topk": {"architecture": "batch_topk", "multi_topk": 0.125},
    "matryoshka": {"prefixes": (0.25, 0.5, 1.0)},
}


def matrices(sae, x, params, mesh, k):
    """Return every code of the loss, and the inference code, as matrices [B, F]."""

    def local(params, x):
        model = SparseAutoencoder(params, sae)
        codes = [code for _, code in losses.terms(model, *model.codes(x, k))] + [model.infer(x, threshold=3.0)]
        rows = jnp.arange(len(x))[:, None]
        return [
            code.values
            if code.indices is None
            else jnp.zeros((len(x), len(params["b_enc_F"]))).at[rows, code.indices].add(code.values)
            for code in codes
        ]

    specs = sharding.params(sae.architecture), sharding.BATCH
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data", "feature"))
    return jax.device_get(jax.jit(run)(params, x))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("k", [3, 2], ids=["k", "annealed k"])
def test_a_matrix_equals_its_slots(name, mesh, k):
    check_matrices(name, "dense", mesh, k)


@pytest.mark.parametrize("name", ["topk", "multi_topk"])
def test_a_matrix_from_the_threshold_equals_its_slots(name, monkeypatch):
    monkeypatch.setattr(threshold, "pallas", functools.partial(threshold.pallas, interpret=True))
    check_matrices(name, "threshold", (1, 1), 2)


def check_matrices(name, products, mesh, k):
    random = np.random.default_rng(0)
    params = {
        "W_enc_FD": random.integers(-1, 2, (LATENTS, WIDTH)),
        "b_enc_F": random.integers(-1, 2, LATENTS),
        "W_dec_FD": random.integers(-1, 2, (LATENTS, WIDTH)),
        "b_dec_D": random.integers(-1, 2, WIDTH),
    }
    params = {name: value.astype(np.float32) for name, value in params.items()}  # integers: sums are exact, ties common
    x = random.integers(-2, 3, (ROWS, WIDTH)).astype(np.float32)
    mesh = sharding.make_mesh(*mesh, ROWS, LATENTS)
    sae = SaeConfig(k=3, matmul_dtype="float32", products="sparse", **VARIANTS[name])
    slots = matrices(sae, x, params, mesh, k)
    dense = matrices(dataclasses.replace(sae, products=products), x, params, mesh, k)
    ties = np.sort(slots[0], 1)
    assert (ties[:, -1] == ties[:, -2]).any()
    assert len(slots) == len(dense) >= 2
    for left, right in zip(slots, dense, strict=True):
        np.testing.assert_array_equal(left, right)
        assert 0 < (left > 0).sum() < left.size / 2


def test_dense_products_need_all_latents_at_once():
    for products in ("dense", "threshold"):
        with pytest.raises(InputError, match=f"products is {products}; with"):
            SaeConfig(products=products, encode_chunk=64)
