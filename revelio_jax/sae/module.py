"""The sparse autoencoder as a Flax module: encoding rows into codes and decoding codes into rows."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from revelio_jax.config import SaeConfig
from revelio_jax.sae import jump, sparse, topk
from revelio_jax.sae.sharding import total

# batch_topk: slots of a row as a multiple of k. If more latents are above the threshold, the smallest are lost.
BATCH_SLOTS = 4
MULTI = 4  # MultiTopK also reconstructs with this multiple of k latents


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Code:
    """Latent values of rows on one device, as slots or dense.

    Slots: float32 ``values`` [B, K] >= 0 and int32 ``indices`` [B, K] of their latents on this device; a slot
    with value 0 does not fire. Dense: ``values`` [B, F] and ``indices`` None.
    """

    values: jax.Array
    indices: jax.Array | None = None

    @property
    def slot_indices(self) -> jax.Array:
        """Return ``indices``. Raise ValueError if the code is dense."""
        if self.indices is None:
            raise ValueError("a dense code has no slots")
        return self.indices

    def where(self, mask: jax.Array) -> "Code":
        """Return the code with all values outside ``mask`` set to 0."""
        return dataclasses.replace(self, values=jnp.where(mask, self.values, 0))

    def count(self, latents: int, above: float) -> jax.Array:
        """Return the number of rows on which each latent of this device is above a value: int32 [F]."""
        fires = self.values > above  # a selected slot with value 0 does not fire
        if self.indices is None:
            return fires.sum(0, dtype=jnp.int32)
        return jnp.zeros_like(fires, jnp.int32, latents).at[self.indices].add(fires.astype(jnp.int32))


def slots(sae: SaeConfig) -> int:
    """Return the number of slots of a row in training: the candidate latents for topk or batch_topk."""
    per_k = (MULTI if sae.multi_topk else 1) * (BATCH_SLOTS if sae.architecture == "batch_topk" else 1)
    return per_k * max(sae.k, sae.k_start or 0)


def decode(code: Code, W_dec_FD: jax.Array, sae: SaeConfig) -> jax.Array:
    """Return W_dec z without the bias, summed over the ``feature`` axis: [B, D]."""
    if code.indices is None:
        part_BD = sparse.product(code.values, W_dec_FD, sae.matmul_dtype)
    else:
        part_BD = sparse.weighted_rows(code.values, code.indices, W_dec_FD, sae)
    return jax.lax.psum(part_BD, "feature")


class SparseAutoencoder(nnx.Module):
    """z = select(ReLU(W_enc (x - b_dec) + b_enc)), x_hat = W_dec z + b_dec.

    ``sae.architecture`` determines ``select``; jumprelu keeps the values above its thresholds, without ReLU.
    Parameters are float32. Both matrices are [F, D], one row per latent, so that sparse gradients touch whole rows.
    Methods run inside ``jax.shard_map`` over the axes of :mod:`revelio_jax.sae.sharding`, with the parameters of
    this device's latents.

    Sources: TopK and MultiTopK Gao et al. 2024 (arXiv 2406.04093), as used in arXiv 2501.19066; BatchTopK
    Bussmann et al. 2024 (arXiv 2412.06410); JumpReLU Rajamanoharan et al. 2024 (arXiv 2407.14435).
    """

    def __init__(self, params: dict[str, jax.Array], sae: SaeConfig):
        self.params = nnx.data({name: nnx.Param(value) for name, value in params.items()})
        self.sae = sae

    def __getitem__(self, name: str) -> jax.Array:
        return self.params[name][...]

    def codes(self, x_BD: jax.Array, k: jax.Array | int) -> tuple[Code, Code | None]:
        """Return the training code of rows, and the MultiTopK code or None. k may be traced."""
        sae = self.sae
        if sae.architecture in ("dense", "jumprelu"):
            return self._dense(x_BD), None
        select = self._largest if sae.architecture == "topk" else self._above_kth
        candidates = self._candidates(x_BD, slots(sae))
        return select(candidates, k), select(candidates, MULTI * k) if sae.multi_topk else None

    def infer(self, x_BD: jax.Array, threshold: jax.Array) -> Code:
        """Return the inference code of rows. The code of a row does not depend on the other rows of the batch.

        batch_topk keeps values above ``threshold``, at most the BATCH_SLOTS k largest of a row. An exported
        batch_topk is a jumprelu without this bound.
        """
        sae = self.sae
        if sae.architecture in ("dense", "jumprelu"):
            return self._dense(x_BD)
        if sae.architecture == "topk":
            return self._largest(self._candidates(x_BD, sae.k), sae.k)
        largest = self._largest(self._candidates(x_BD, BATCH_SLOTS * sae.k), BATCH_SLOTS * sae.k)
        return largest.where(largest.values > threshold)

    def decode(self, code: Code) -> jax.Array:
        """Return the reconstruction [B, D], summed over the ``feature`` axis."""
        return decode(code, self["W_dec_FD"], self.sae) + self["b_dec_D"]

    def _candidates(self, x_BD: jax.Array, slots: int) -> Code:
        x_BD = x_BD - self["b_dec_D"]
        return Code(
            *sparse.candidates(
                x_BD, self["W_enc_FD"], self["b_enc_F"], slots, self.sae.matmul_dtype, self.sae.encode_chunk
            )
        )

    def l0_penalty(self, x_BD: jax.Array, k: jax.Array | int) -> jax.Array:
        """Return (L0 / k - 1)^2 of jumprelu, with L0 the mean over all rows; its gradient moves the thresholds."""
        fires_BF = jump.fires(self._pre(x_BD), self._threshold(), self.sae.jump_bandwidth)
        l0 = total(fires_BF.sum()) / jax.lax.psum(len(x_BD), "data")
        return jnp.square(l0 / k - 1)

    def _dense(self, x_BD: jax.Array) -> Code:
        pre_BF = self._pre(x_BD)
        if self.sae.architecture == "jumprelu":
            return Code(jump.relu(pre_BF, self._threshold(), self.sae.jump_bandwidth))
        return Code(jax.nn.relu(pre_BF))

    def _pre(self, x_BD: jax.Array) -> jax.Array:
        # No ReLU, because it would move latents that are far from firing close to a small threshold.
        pre_BF = sparse.product(x_BD - self["b_dec_D"], self["W_enc_FD"].T, self.sae.matmul_dtype)
        return pre_BF + self["b_enc_F"]

    def _threshold(self) -> jax.Array:
        return jnp.exp(self["log_threshold_F"])

    def _largest(self, candidates: Code, k: jax.Array | int) -> Code:
        return candidates.where(topk.survivors(candidates.values, k, "feature"))

    def _above_kth(self, candidates: Code, k: jax.Array | int) -> Code:
        """Keep k latents per row on average over the batch, at most BATCH_SLOTS k on one row."""
        code = self._largest(candidates, BATCH_SLOTS * k)
        rows = jax.lax.psum(len(code.values), "data")
        return code.where(code.values >= topk.kth_largest(code.values, k * rows, None, total))
