"""Codes of rows, and their products with the weight matrices.

A code has one of two representations (config.sae.products). *Slots* are the values and indices of K latents per row;
the cost of their products grows with K. A *matrix* has the values of all latents, nearly all of them 0; its products
multiply whole matrices, which matrix units do fast.
"""

import dataclasses

import jax
import jax.numpy as jnp

from revelio_jax.config import SaeConfig
from revelio_jax.sae import sparse, topk
from revelio_jax.sae.kernels import decode_error, segment_sum
from revelio_jax.sae.kernels.segment_sum import Gradient
from revelio_jax.sae.sparse import product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Code:
    """Latent values of rows on one device, as slots or as a matrix.

    Slots: float32 ``values`` [B, K] >= 0 and int32 ``indices`` [B, K] of their latents on this device; a slot
    with value 0 does not fire. Matrix: ``values`` [B, F] and ``indices`` None. A gradient of the loss by the values of
    a code has the same form, and may be negative.
    """

    values: jax.Array
    indices: jax.Array | None = None

    @property
    def latents(self) -> jax.Array:
        """The latent of every value, int32, that broadcasts to the shape of ``values``."""
        return jnp.arange(self.values.shape[1]) if self.indices is None else self.indices

    def where(self, mask: jax.Array) -> "Code":
        """Return the code with all values outside ``mask`` set to 0."""
        return dataclasses.replace(self, values=jnp.where(mask, self.values, 0))

    def as_matrix(self, pre_BF: jax.Array) -> "Code":
        """Return slots as a matrix, without a scatter.

        ``pre_BF`` are the pre-activations of which the slots are the largest. Of each row the values above the smallest
        positive slot are kept, and those equal to it up to the highest latent among the equal slots: if a row has more
        equal values than slots for them, the slots hold the lowest latents.
        """
        low_B = jnp.where(self.values > 0, self.values, jnp.inf).min(1)
        last_B = jnp.where(self.values == low_B[:, None], self.latents, -1).max(1)
        return Code.of_kept(pre_BF, low_B, last_B)

    @staticmethod
    def of_kept(pre_BF: jax.Array, low_B: jax.Array, last_B: jax.Array) -> "Code":
        """Return the matrix of the pre-activations that :func:`topk.kept` keeps."""
        return Code(_computed_once(topk.kept(pre_BF, low_B, last_B)))

    def count(self, latents: int, above: float) -> jax.Array:
        """Return the number of rows on which each latent of this device is above a value: int32 [F]."""
        fires = self.values > above  # a selected slot with value 0 does not fire
        if self.indices is None:
            return fires.sum(0, dtype=jnp.int32)
        return jnp.zeros_like(fires, jnp.int32, latents).at[self.indices].add(fires.astype(jnp.int32))

    def count_by(self, group_B: jax.Array, groups: int, latents: int, above: float) -> jax.Array:
        """Return :meth:`count` for each group of rows: int32 [groups, F]. Rows of group -1 are not counted."""
        fires = self.values > above
        if self.indices is None:
            in_group_GB = group_B == jnp.arange(groups)[:, None]
            return (in_group_GB.astype(jnp.float32) @ fires.astype(jnp.float32)).astype(jnp.int32)
        row_B1 = jnp.where(group_B < 0, groups, group_B)[:, None]  # a row after the last is dropped
        counts_GF = jnp.zeros_like(fires, jnp.int32, (groups, latents))
        return counts_GF.at[row_B1, self.indices].add(fires.astype(jnp.int32), mode="drop")

    def decode(self, W_dec_FD: jax.Array, sae: SaeConfig) -> jax.Array:
        """Return W_dec z without the bias, summed over the ``feature`` axis: [B, D]."""
        if self.indices is None:
            part_BD = product(self.values, W_dec_FD, sae.matmul_dtype)
        else:
            part_BD = sparse.weighted_rows(self.values, self.indices, W_dec_FD)
        return jax.lax.psum(part_BD, "feature")

    def decode_error(
        self, x_BD: jax.Array, W_dec_FD: jax.Array, b_dec_D: jax.Array, sae: SaeConfig
    ) -> tuple[jax.Array, "Code"]:
        """Return the error x - W_dec z - b_dec [B, D], and its dot products with the rows of W_dec where z > 0."""
        # With several devices the error is known only after a sum.
        supported = decode_error.supports(x_BD.shape[1], self.values.shape[1])
        if sae.products == "kernels" and supported and jax.lax.axis_size("feature") == 1:
            decoded = decode_error.pallas(self.values, self.latents, W_dec_FD, x_BD, b_dec_D)
            error_BD, dots = jax.lax.psum(decoded.error_BD, "feature"), decoded.dots_BK
        else:
            error_BD = x_BD - (self.decode(W_dec_FD, sae) + b_dec_D)
            dots = self.dots(error_BD, W_dec_FD, sae)
        return error_BD, dataclasses.replace(self, values=_computed_once(jnp.where(self.values > 0, dots, 0)))

    def dots(self, rows_BD: jax.Array, W_dec_FD: jax.Array, sae: SaeConfig) -> jax.Array:
        """Return the dot products of rows with the decoder rows of their latents, in the shape of ``values``."""
        if self.indices is None:
            return product(rows_BD, W_dec_FD.T, sae.matmul_dtype)
        return sparse.dots(rows_BD, self.indices, W_dec_FD)

    def add_outer(
        self, start_FD: jax.Array, rows_BD: jax.Array, sae: SaeConfig, W_FD: jax.Array | None = None
    ) -> Gradient:
        """Return ``start_FD`` plus, for each latent, the sum over rows of its value times the row: [F, D].

        The kernel also returns sums over the rows of the result, and their dot products with ``W_FD``.
        """
        if self.indices is None:
            return Gradient(_computed_once(start_FD + product(self.values.T, rows_BD, sae.matmul_dtype)))
        if sae.products == "kernels":
            rows_BD = rows_BD.astype(sae.matmul_dtype)
            return segment_sum.pallas(self.values, self.indices, rows_BD, len(start_FD), W_FD, start_FD)
        return Gradient(sparse.add_outer(start_FD, self.values, self.indices, rows_BD, sae))

    def sums(self, latents: int, sae: SaeConfig) -> jax.Array:
        """Return the sum over rows of the values of each latent: [F]."""
        if self.indices is None:
            return self.values.sum(0)
        return sparse.sums(self.values, self.indices, latents, sae)


def _computed_once(x: jax.Array) -> jax.Array:
    """Keep XLA on a TPU from computing ``x`` inside each product that reads it, once for every tile of the result."""
    return jax.lax.platform_dependent(x, tpu=jax.lax.optimization_barrier, default=lambda x: x)
