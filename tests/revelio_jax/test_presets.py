"""The presets of the two papers."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from revelio_jax import config as configs
from revelio_jax import presets
from revelio_jax.sae import SparseAutoencoder, forms, initial, sharding


def resolved(preset):
    c = configs.default()
    preset(c)
    return configs.resolve(c)


@pytest.mark.parametrize(("preset", "rows"), [(presets.steerers, 400e6), (presets.revelio, 83_886_080)])
def test_a_run_has_the_papers_number_of_rows(preset, rows):
    train = resolved(preset).train
    assert train.steps * train.batch_size == pytest.approx(rows, rel=1e-4)


@pytest.mark.parametrize("preset", [presets.steerers, presets.revelio])
def test_a_preset_does_not_depend_on_earlier_values(preset):
    c = configs.default()
    presets.steerers(c)
    presets.revelio(c)
    preset(c)
    after, fresh = configs.resolve(c), resolved(preset)
    # Only fields of the auxiliary loss, which the preset revelio does not use, may differ.
    aux = {"aux_alpha": 0.0, "dead_after_rows": 1, "dead_threshold": 0.0}
    assert after.train == fresh.train
    assert dataclasses.replace(after.sae, **aux) == dataclasses.replace(fresh.sae, **aux)


def test_top_k_without_relu_equals_top_k_with_relu():
    d, latents, rows = 64, 4096, 256
    sae = resolved(presets.revelio).sae
    assert d * sae.expansion == latents
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, d)) @ random.normal(size=(d, d)) + 5  # correlated, off the origin
    x = x.astype(np.float32)
    mesh = sharding.make_mesh(1, 1, rows, latents)
    params = initial.initial_params(sae, 0, latents, initial.bias(sae.b_dec_init, x), x, mesh)

    def local(params, x):
        code = SparseAutoencoder(params, forms.resolved(sae, latents, mesh)).codes(x, sae.k)[0]
        return code.values, code.indices

    values, indices = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(sharding.params(sae.architecture), sharding.BATCH),
            out_specs=P("data", "feature"),
        )
    )(params, x)
    params = jax.device_get(params)
    pre = (x - params["b_dec_D"]) @ params["W_enc_FD"].T + params["b_enc_F"]
    largest = -np.sort(-pre, 1)[:, : sae.k]  # without ReLU
    assert (pre < 0).mean() == pytest.approx(0.5, abs=0.02)  # ReLU would change half of them
    np.testing.assert_allclose(values, largest, rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(pre, np.asarray(indices), 1), largest, rtol=1e-4)
