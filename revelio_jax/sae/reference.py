"""The plain definition of the autoencoder, its loss and AuxK, which every fast form is tested against.

It covers topk, batch_topk and dense; the formulas of JumpReLU are in jump.py. Arrays are complete: no mesh splits
them, codes are not sparse, and nothing is chunked. Letters: B rows, D width of the activation,
F latents. Sources: TopK, MultiTopK and AuxK Gao et al. 2024 (arXiv 2406.04093); BatchTopK Bussmann et al. 2024
(arXiv 2412.06410); Matryoshka Bussmann et al. 2025 (arXiv 2503.17547).
"""

import jax
import jax.numpy as jnp

from revelio_jax.config import SaeConfig
from revelio_jax.sae.module import BATCH_SLOTS, MULTI


def positive(params: dict[str, jax.Array], x_BD: jax.Array) -> jax.Array:
    """Return ReLU(W_enc (x - b_dec) + b_enc): [B, F]."""
    return jax.nn.relu((x_BD - params["b_dec_D"]) @ params["W_enc_FD"].T + params["b_enc_F"])


def top_k(z_BF: jax.Array, k: int) -> jax.Array:
    """Set all but the k largest values of each row to 0. Of equal values, the lowest index is kept."""
    kept_BK = jax.lax.top_k(z_BF, min(k, z_BF.shape[1]))[1]
    rows_B1 = jnp.arange(len(z_BF))[:, None]
    return z_BF * jnp.zeros_like(z_BF).at[rows_B1, kept_BK].set(1)


def select(z_BF: jax.Array, k: int, architecture: str) -> jax.Array:
    """Set the values that ``architecture`` does not keep in training to 0."""
    if architecture == "topk":
        return top_k(z_BF, k)
    if architecture == "batch_topk":  # k per row on average, at most BATCH_SLOTS k on one row
        candidates_BF = top_k(z_BF, BATCH_SLOTS * k)
        return top_k(candidates_BF.reshape(1, -1), k * len(z_BF)).reshape(z_BF.shape)
    assert architecture == "dense", architecture
    return z_BF


def encode(params: dict[str, jax.Array], x_BD: jax.Array, k: int) -> jax.Array:
    """Return the top-k code of rows: [B, F]."""
    return top_k(positive(params, x_BD), k)


def decode(params: dict[str, jax.Array], z_BF: jax.Array) -> jax.Array:
    """Return the reconstructions W_dec z + b_dec: [B, D]."""
    return z_BF @ params["W_dec_FD"] + params["b_dec_D"]


def fvu(x_BD: jax.Array, x_hat_BD: jax.Array) -> jax.Array:
    """Return the fraction of variance unexplained, ||x - x_hat||^2 / ||x - mean(x)||^2 over all rows."""
    return jnp.square(x_BD - x_hat_BD).sum() / jnp.square(x_BD - x_BD.mean(0)).sum()


@jax.custom_vjp
def raised(z_BF: jax.Array) -> jax.Array:
    """Return z. Its gradient passes only where a step against it raises z: min(gradient, 0)."""
    return z_BF


raised.defvjp(lambda z_BF: (z_BF, None), lambda _, grad_BF: (jnp.minimum(grad_BF, 0),))


def aux_k(params: dict[str, jax.Array], x_BD: jax.Array, x_hat_BD: jax.Array, dead_F: jax.Array, k: int) -> jax.Array:
    """Return ||e - s e_hat||^2 / ||x - mean(x)||^2 with e = x - x_hat and e_hat = W_dec z_dead.

    z_dead are the k largest dead latents. s = <e, e_hat> / ||e_hat||^2, limited to [0, 1]. No gradient flows through
    e and s, nor into z_dead where it would lower z_dead. The gradient on e_hat has no factor s. The result is 0 if no
    latent is dead or k is 0. s and the two conditions on gradients are this project's; in the paper s is 1 and all
    gradients pass.
    """
    error_BD = jax.lax.stop_gradient(x_BD - x_hat_BD)
    error_hat_BD = raised(top_k(positive(params, x_BD) * dead_F, k)) @ params["W_dec_FD"]
    fixed_BD = jax.lax.stop_gradient(error_hat_BD)
    squares = jnp.square(fixed_BD).sum()
    scale = jnp.where(squares > 0, (error_BD * fixed_BD).sum() / jnp.where(squares > 0, squares, 1), 0)
    rest_BD = error_BD - jnp.clip(scale, 0, 1) * fixed_BD - (error_hat_BD - fixed_BD)  # the last term is 0
    loss = jnp.square(rest_BD).sum() / jnp.square(x_BD - x_BD.mean(0)).sum()
    return jnp.where(dead_F.any() & (k > 0), loss, 0)


def loss(
    params: dict[str, jax.Array], x_BD: jax.Array, dead_F: jax.Array, sae: SaeConfig
) -> tuple[jax.Array, jax.Array]:
    """Return the training loss of a batch and its AuxK term.

    The loss is the FVU, for Matryoshka the mean over the prefixes of the dictionary, plus ``multi_topk`` times
    the FVU with MULTI k latents, plus ``aux_alpha`` times AuxK.
    """
    positive_BF = positive(params, x_BD)
    z_BF = select(positive_BF, sae.k, sae.architecture)
    sizes = [round(share * len(dead_F)) for share in sae.prefixes or (1.0,)]
    fvus = [fvu(x_BD, decode(params, z_BF.at[:, size:].set(0))) for size in sizes]
    total = jnp.stack(fvus).mean()
    if sae.multi_topk:
        more_BF = select(positive_BF, MULTI * sae.k, sae.architecture)
        total += sae.multi_topk * fvu(x_BD, decode(params, more_BF))
    aux = aux_k(params, x_BD, decode(params, z_BF), dead_F, sae.k_aux)
    return total + sae.aux_alpha * aux, aux
