"""Which latents fire where, against the plain matrix of codes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.explore import activations as module
from revelio_jax.explore.activations import fired, grid_of
from revelio_jax.pipelines.tokens import BOS, CONTENT, EOS, PADDING
from revelio_jax.steering.sae import Sae

D, LATENTS = 8, 12


@pytest.fixture(params=["topk", "standard"])
def sae(request) -> Sae:
    generator = torch.Generator().manual_seed(0)
    W_dec_FD = torch.randn(LATENTS, D, generator=generator)
    k = 3 if request.param == "topk" else None
    return Sae(W_dec_FD.T.contiguous(), torch.zeros(LATENTS), W_dec_FD, torch.zeros(D), k, {})


def test_maps_are_the_codes_of_all_steps(sae, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 4)  # in parts
    x = [torch.randn(9, D, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    found = fired(sae, x, timesteps=(900, 500, 100))
    codes = torch.stack([sae.codes(each) for each in x])
    assert found.shape == (3, 9)
    for latent in range(LATENTS):
        torch.testing.assert_close(torch.from_numpy(found.map(latent)), codes[..., latent])


def test_the_strongest_are_those_beyond_the_empty_prompt_and_not_on_padding(sae):
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(3))
    x[5] *= 100  # padding
    kinds = np.array([BOS, CONTENT, CONTENT, CONTENT, EOS, PADDING])
    empty = np.linspace(0, 2, LATENTS).astype(np.float32)
    found = fired(sae, [x], tokens=tuple("abcdef"), kinds=kinds, empty=empty)
    codes_PF = sae.codes(x)[:5].numpy()
    peaks_F = codes_PF.max(0)
    expected = [f for f in np.argsort(-(peaks_F - empty)) if peaks_F[f] > 0]
    rows = found.strongest(LATENTS)
    assert [row["latent"] for row in rows] == expected
    for row in rows:
        latent = row["latent"]
        assert row["value"] == pytest.approx(peaks_F[latent])
        assert row["position"] == codes_PF[:, latent].argmax()
        assert row["share"] == pytest.approx((codes_PF[:, latent] > 0).sum() / 6)
    assert [row["latent"] for row in found.strongest(2)] == expected[:2]
    assert {row["latent"] for row in found.strongest(LATENTS, 5)} == set(np.flatnonzero(sae.codes(x)[5].numpy()))


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 4))
def test_a_grid_is_found_from_the_number_of_positions(height, width, halvings):
    grid = -(-height // 2**halvings), -(-width // 2**halvings)
    found = grid_of(grid[0] * grid[1], height, width)
    assert found is not None
    assert found[0] * found[1] == grid[0] * grid[1]
    if height == width:
        assert found == grid


def test_what_is_no_map():
    assert grid_of(77, 64, 64) is None
