"""The k-sparse autoencoder: module, exact top-k, sparse products, losses, initial values.

Letters in names: B rows of a batch, D width of the activation, F latents, K latents that fire on a
row, C dead latents that the auxiliary loss works on. Inside ``jax.shard_map`` B and F count what one
device holds.
"""

from revelio_jax.sae.module import Code, SparseAutoencoder

__all__ = ["Code", "SparseAutoencoder"]
