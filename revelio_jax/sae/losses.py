"""The reconstruction terms of the loss; :mod:`.gradients` adds AuxK, and the L0 penalty of jumprelu.

Functions run inside ``jax.shard_map`` and sum over all rows of the ``data`` axis, so that the loss does not
depend on the mesh.
"""

import jax
import jax.numpy as jnp

from revelio_jax.sae.code import Code
from revelio_jax.sae.module import SparseAutoencoder


def squared_deviation(x_BD: jax.Array) -> jax.Array:
    """Return the sum over all rows of the squared distance to the mean row: a scalar."""
    mean_D = jax.lax.pmean(x_BD.mean(0), "data")
    return jnp.maximum(jax.lax.psum(jnp.square(x_BD - mean_D).sum(), "data"), jnp.finfo(x_BD.dtype).tiny)


def normalized_error(error_BD: jax.Array, deviation: jax.Array) -> jax.Array:
    """Return the sum of squared errors divided by ``deviation``: the FVU of the batch if the error is x - x_hat."""
    return jax.lax.psum(jnp.square(error_BD).sum(), "data") / deviation


def terms(model: SparseAutoencoder, code: Code, more: Code | None) -> list[tuple[float, Code]]:
    """Return weights and codes, ``code`` first. The weighted sum of their normalized errors is the loss before AuxK.

    Matryoshka averages over the prefixes of the dictionary, the last of which is the whole dictionary (Bussmann et
    al. 2025, arXiv 2503.17547). MultiTopK adds the code ``more`` with 4 k latents.
    """
    sae = model.sae
    parts = [code, *_prefixes(model, code)]
    return [(1 / len(parts), part) for part in parts] + ([(sae.multi_topk, more)] if more is not None else [])


def _prefixes(model: SparseAutoencoder, code: Code) -> list[Code]:
    """Return the code restricted to the latents of each prefix except the last, the whole dictionary."""
    local = len(model["b_enc_F"])
    latents = local * jax.lax.axis_size("feature")
    return [
        code.where(code.latents + jax.lax.axis_index("feature") * local < round(share * latents))
        for share in model.sae.prefixes[:-1]
    ]
