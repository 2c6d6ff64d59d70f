"""Autoencoders without training, of the same shape as a trained SAE: any measure of an SAE must rank them below it.

N rows, D width, F latents.
"""

import dataclasses

import torch

from revelio_jax.steering.sae import Sae

# As in revelio_jax.sae.initial, which needs JAX.
ROW_SHARE, RANDOM, RIDGE, FIT_ROWS = 0.8, 4, 0.03, 512


def random_dictionary(sae: Sae, rows_ND: torch.Tensor, seed: int) -> Sae:
    """Return an SAE of random unit vectors in decoder and encoder, with the mean of ``rows_ND`` as bias.

    As many latents fire as in ``sae``.
    """
    generator = torch.Generator().manual_seed(seed)
    W_dec_FD = torch.nn.functional.normalize(torch.randn(sae.W_dec_FD.shape, generator=generator), dim=1)
    return _tied(sae, W_dec_FD, rows_ND)


def untrained(sae: Sae, rows_ND: torch.Tensor, seed: int) -> Sae:
    """Return the SAE with which training starts by default, config.sae.init=rows, initialized from ``rows_ND``.

    Three of four directions are mostly C^-1 x of rows x, C being their covariance, and the encoder has the scale that
    best reconstructs the rows. The bias is the mean of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    latents, d = sae.W_dec_FD.shape
    random_FD = torch.nn.functional.normalize(torch.randn(latents, d, generator=generator), dim=1)
    x_ND = rows_ND - rows_ND.mean(0)
    covariance_DD = x_ND.T @ x_ND / len(x_ND)
    ridge = RIDGE * covariance_DD.trace() / d
    inverse_DD = torch.linalg.inv(covariance_DD + (ridge if ridge > 0 else 1.0) * torch.eye(d))
    order_N = torch.randperm(len(x_ND), generator=generator)
    rows_FD = torch.nn.functional.normalize(x_ND[order_N[torch.arange(latents) % len(x_ND)]] @ inverse_DD, dim=1)
    mostly_rows_FD = torch.nn.functional.normalize(ROW_SHARE * rows_FD + (1 - ROW_SHARE) * random_FD, dim=1)
    is_random_F1 = torch.arange(latents)[:, None] % RANDOM == 0
    made = _tied(sae, torch.where(is_random_F1, random_FD, mostly_rows_FD), rows_ND)
    sample_ND = rows_ND[:FIT_ROWS]
    y_ND = made.reconstruct(sample_ND) - made.b_dec_D
    squares = y_ND.square().sum()
    factor = float(((sample_ND - made.b_dec_D) * y_ND).sum() / squares) if squares > 0 else 1.0
    threshold_F = None if made.threshold_F is None else factor * made.threshold_F
    return dataclasses.replace(made, W_enc_DF=factor * made.W_enc_DF, threshold_F=threshold_F)


def _tied(sae: Sae, W_dec_FD: torch.Tensor, rows_ND: torch.Tensor) -> Sae:
    """Return an SAE whose encoder is the transposed decoder, on which as many latents fire as on ``sae``."""
    made = Sae(
        W_dec_FD.T.contiguous(),
        torch.zeros(len(W_dec_FD)),
        W_dec_FD,
        rows_ND.mean(0),
        sae.k,
        sae.metadata,
    )
    if sae.threshold_F is None:
        return made
    sample_ND = rows_ND[:FIT_ROWS]
    firing = (sae.codes(sample_ND) > 0).float().mean()
    threshold = torch.quantile(made.pre_codes(sample_ND)[:, :4096].flatten()[: 2**23], 1 - float(firing))
    return dataclasses.replace(made, threshold_F=threshold.expand(len(W_dec_FD)))
