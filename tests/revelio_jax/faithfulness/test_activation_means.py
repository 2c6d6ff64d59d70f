"""Means by position and timestep, and untrained autoencoders made of the kept rows."""

import pytest
import torch

from revelio_jax.faithfulness import means
from revelio_jax.faithfulness.baselines import random_dictionary, untrained
from revelio_jax.faithfulness.means import ActivationMeans
from revelio_jax.steering.sae import Sae

GENERATOR = torch.Generator().manual_seed(0)


def test_means_by_position_leave_masked_rows_out():
    x_BTD = torch.randn(3, 4, 5, generator=GENERATOR)
    mask_BT = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    found = ActivationMeans()
    found.add(x_BTD[:2], None, mask_BT[:2])
    found.add(x_BTD[2:], None, mask_BT[2:])
    overall_D = x_BTD[mask_BT].mean(0)
    torch.testing.assert_close(found.mean(), overall_D)
    torch.testing.assert_close(found.at(None)[1], (x_BTD[0, 1] + x_BTD[2, 1]) / 2)
    torch.testing.assert_close(found.at(None)[3], overall_D)  # a position without rows
    torch.testing.assert_close(found.at(500.0), found.at(None))  # a text encoder has no timestep


def test_means_of_a_denoiser_are_those_of_the_nearest_timestep(monkeypatch):
    early, late = torch.randn(2, 2, 3, 4, generator=GENERATOR)
    found = ActivationMeans()
    found.add(early, 900.2)
    found.add(late, 100.0)
    torch.testing.assert_close(found.at(700.0), early.mean(0))
    torch.testing.assert_close(found.at(0.0), late.mean(0))
    monkeypatch.setattr(means, "POSITION_LIMIT", 5)
    shared = ActivationMeans()
    shared.add(early, 900.0)
    torch.testing.assert_close(shared.at(900.0), early.mean((0, 1))[None])


def test_kept_rows_are_drawn_from_all_passes():
    found = ActivationMeans(keep_rows=50)
    for value in range(20):
        found.add(torch.full((2, 10, 1), float(value)))
    rows = found.rows()
    assert len(rows) == 50
    assert len(rows.unique()) > 12


def trained(rows_ND: torch.Tensor, **selection) -> Sae:
    W_dec_FD = torch.nn.functional.normalize(torch.randn(32, rows_ND.shape[1], generator=GENERATOR), dim=1)
    options = {"k": 4, "threshold_F": None} | selection
    return Sae(W_dec_FD.T, torch.zeros(32), W_dec_FD, rows_ND.mean(0), options["k"], {}, options["threshold_F"])


@pytest.mark.parametrize("selection", [{}, {"k": None, "threshold_F": torch.full((32,), 1.5)}, {"k": None}])
@pytest.mark.parametrize("make", [random_dictionary, untrained])
def test_untrained_saes_have_the_shape_and_the_sparsity_of_the_trained_one(make, selection):
    rows_ND = 3 * torch.randn(600, 8, generator=GENERATOR) + 1
    sae = trained(rows_ND, **selection)
    made = make(sae, rows_ND, seed=0)
    assert made.W_enc_DF.shape == sae.W_enc_DF.shape
    assert made.architecture == sae.architecture
    active, expected = ((each.codes(rows_ND) > 0).float().sum(1).mean() for each in (made, sae))
    assert float(active) == pytest.approx(float(expected), rel=0.2)
    assert torch.equal(make(sae, rows_ND, seed=0).W_dec_FD, made.W_dec_FD)
    assert not torch.equal(make(sae, rows_ND, seed=1).W_dec_FD, made.W_dec_FD)


def test_the_untrained_sae_has_the_scale_of_the_rows():
    rows_ND = torch.randn(400, 8, generator=GENERATOR)
    made = untrained(trained(rows_ND), rows_ND, seed=0)
    y_ND = made.reconstruct(rows_ND) - made.b_dec_D
    factor = ((rows_ND - made.b_dec_D) * y_ND).sum() / y_ND.square().sum()
    assert float(factor) == pytest.approx(1.0, abs=0.02)
