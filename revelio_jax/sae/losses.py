"""What training minimises: normalized errors of codes.

Functions run inside ``jax.shard_map``; sums go over all rows of the ``data`` axis, so that the loss
does not depend on the mesh.
"""

import jax
import jax.numpy as jnp

from revelio_jax.sae.module import Code, SparseAutoencoder


def squared_deviation(x_BD: jax.Array) -> jax.Array:
    """Sum over all rows of the squared distance to the mean row: scalar."""
    mean_D = jax.lax.pmean(x_BD.mean(0), "data")
    return jnp.maximum(jax.lax.psum(jnp.square(x_BD - mean_D).sum(), "data"), jnp.finfo(x_BD.dtype).tiny)


def normalized_error(error_BD: jax.Array, deviation: jax.Array) -> jax.Array:
    """Sum of squared errors over ``deviation``; of x - x_hat it is the batch's FVU."""
    return jax.lax.psum(jnp.square(error_BD).sum(), "data") / deviation


def terms(model: SparseAutoencoder, code: Code, more: Code | None) -> list[tuple[float, Code]]:
    """Codes whose normalized errors, each times its weight, are the loss. The first is ``code``.

    For Matryoshka the mean over the prefixes of the dictionary (Bussmann et al. 2025, arXiv 2503.17547),
    the longest being the whole; for MultiTopK also the code ``more``, of 4 k latents.
    """
    sae = model.sae
    parts = [code, *_prefixes(model, code)]
    return [(1 / len(parts), part) for part in parts] + ([(sae.multi_topk, more)] if more else [])


def _prefixes(model, code):
    """The code with the first latents only, for every prefix of the dictionary but the whole."""
    local = len(model["b_enc_F"])
    latents = local * jax.lax.axis_size("feature")
    return [
        code.where(code.indices + jax.lax.axis_index("feature") * local < round(share * latents))
        for share in model.sae.prefixes[:-1]
    ]
