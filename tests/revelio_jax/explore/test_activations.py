"""Active latents and their maps equal the dense codes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.explore import activations as module
from revelio_jax.explore.activations import find_active, grid_of
from revelio_jax.pipelines.tokens import BOS, CONTENT, EOS, PADDING
from revelio_jax.steering.sae import Sae

D, LATENTS = 8, 12


@pytest.fixture(params=["topk", "standard"])
def sae(request) -> Sae:
    generator = torch.Generator().manual_seed(0)
    W_dec_FD = torch.randn(LATENTS, D, generator=generator)
    k = 3 if request.param == "topk" else None
    return Sae(W_dec_FD.T.contiguous(), torch.zeros(LATENTS), W_dec_FD, torch.zeros(D), k, {})


def test_maps_equal_the_codes_of_all_steps(sae, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 4)  # several batches
    x = [torch.randn(9, D, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    active = find_active(sae, x, timesteps=(900, 500, 100))
    codes = torch.stack([sae.codes(x_PD) for x_PD in x])
    assert active.shape == (3, 9)
    for latent in range(LATENTS):
        torch.testing.assert_close(torch.from_numpy(active.map(latent)), codes[..., latent])


def test_strongest_ranks_by_excess_over_the_empty_prompt_without_padding(sae):
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(3))
    x[5] *= 100  # padding
    kinds = np.array([BOS, CONTENT, CONTENT, CONTENT, EOS, PADDING])
    empty = np.linspace(0, 2, LATENTS).astype(np.float32)
    active = find_active(sae, [x], tokens=tuple("abcdef"), kinds=kinds, empty=empty)
    codes_PF = sae.codes(x)[:5].numpy()
    peaks_F = codes_PF.max(0)
    expected = [f for f in np.argsort(-(peaks_F - empty)) if peaks_F[f] > 0]
    rows = active.strongest(LATENTS)
    assert [row["latent"] for row in rows] == expected
    for row in rows:
        latent = row["latent"]
        assert row["value"] == pytest.approx(peaks_F[latent])
        assert row["position"] == codes_PF[:, latent].argmax()
        assert row["share"] == pytest.approx((codes_PF[:, latent] > 0).sum() / 6)
    assert [row["latent"] for row in active.strongest(2)] == expected[:2]
    assert {row["latent"] for row in active.strongest(LATENTS, 5)} == set(np.flatnonzero(sae.codes(x)[5].numpy()))


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 4))
def test_grid_of_inverts_the_number_of_positions(height, width, halvings):
    grid = -(-height // 2**halvings), -(-width // 2**halvings)
    found = grid_of(grid[0] * grid[1], height, width)
    assert found is not None
    assert found[0] * found[1] == grid[0] * grid[1]
    if height == width:
        assert found == grid


def test_grid_of_is_none_for_token_positions():
    assert grid_of(77, 64, 64) is None
