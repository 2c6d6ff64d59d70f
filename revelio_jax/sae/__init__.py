"""The k-sparse autoencoder: module, exact top-k, sparse products, losses and initial parameters.

``reference.py`` is the plain definition of the same computation. Letters in names: B rows of a batch, D width of the
activation, F latents, K slots for the active latents of a row (at least k), G groups of latents, C latents in a chunk
or gathered dead latents. Inside ``jax.shard_map`` B and F are the sizes on one device.
"""

from revelio_jax.sae.code import Code
from revelio_jax.sae.module import SparseAutoencoder

__all__ = ["Code", "SparseAutoencoder"]
