"""The k-sparse autoencoder as a Flax module."""

import jax
from flax import nnx

from revelio_jax.sae import sparse
from revelio_jax.sharding import shared


class TopKSae(nnx.Module):
    """z = TopK(ReLU(W_enc (x - b_dec) + b_enc)), x_hat = W_dec z + b_dec.

    Parameters are float32. Both matrices are [F, D], a row a latent, so that the sparse gradients
    touch whole rows. k is what may fire on a row. Methods run inside ``jax.shard_map`` over the axes
    of :mod:`revelio_jax.sharding`; the parameters are then this device's latents.
    Source: Gao et al. 2024 (arXiv 2406.04093), as used in arXiv 2501.19066.
    """

    def __init__(
        self, W_enc_FD: jax.Array, b_enc_F: jax.Array, W_dec_FD: jax.Array, b_dec_D: jax.Array, *, k: int
    ):
        self.W_enc_FD = nnx.Param(W_enc_FD)
        self.b_enc_F = nnx.Param(b_enc_F)
        self.W_dec_FD = nnx.Param(W_dec_FD)
        self.b_dec_D = nnx.Param(b_dec_D)
        self.k = k

    def encode(self, x_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Values [B, K] and indices [B, K] (within this device) of the latents that fire."""
        return sparse.encode(
            shared(x_BD, "feature"),
            shared(self.W_enc_FD[...], "data"),
            shared(self.b_enc_F[...], "data"),
            shared(self.b_dec_D[...], "data", "feature"),
            self.k,
            "feature",
        )

    def decode(self, values_BK: jax.Array, indices_BK: jax.Array) -> jax.Array:
        """Reconstruction [B, D], summed over the devices that share the latents."""
        part_BD = sparse.decode(values_BK, indices_BK, shared(self.W_dec_FD[...], "data"))
        return jax.lax.psum(part_BD, "feature") + self.b_dec_D[...]

    def __call__(self, x_BD: jax.Array) -> jax.Array:
        return self.decode(*self.encode(x_BD))
