"""The sparse autoencoder as a Flax module: how a row becomes a code, and a code a row."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from revelio_jax.config import SaeConfig
from revelio_jax.sae import jump, sparse, topk
from revelio_jax.sae.sharding import total

# Slots of a row for batch_topk, over k: a row with more latents above the threshold loses the smallest.
BATCH_SLOTS = 4
MULTI = 4  # MultiTopK reconstructs with that many times k latents


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Code:
    """Latents of rows on one device, as slots or densely.

    Slots: ``values`` [B, K] >= 0, and ``indices`` [B, K] of their latents within this device; a slot of
    value 0 does not fire. Dense: ``values`` [B, F], ``indices`` None. float32 and int32.
    """

    values: jax.Array
    indices: jax.Array | None = None

    def where(self, kept: jax.Array) -> "Code":
        """The code with the values that are not ``kept`` set to 0."""
        return dataclasses.replace(self, values=jnp.where(kept, self.values, 0))

    def count(self, latents: int, above: float) -> jax.Array:
        """On how many rows each of this device's latents is above a value: int32 [F]."""
        fires = self.values > above  # a slot that was selected with value 0 does not fire
        if self.indices is None:
            return fires.sum(0, dtype=jnp.int32)
        return jnp.zeros_like(fires, jnp.int32, latents).at[self.indices].add(fires.astype(jnp.int32))


def slots(sae: SaeConfig) -> int:
    """Slots of a row in training: latents that are candidates for topk or batch_topk."""
    per_k = (MULTI if sae.multi_topk else 1) * (BATCH_SLOTS if sae.architecture == "batch_topk" else 1)
    return per_k * max(sae.k, sae.k_start or 0)


def decode(code: Code, W_dec_FD: jax.Array, sae: SaeConfig) -> jax.Array:
    """W_dec z: [B, D], summed over the devices that share the latents, without the bias."""
    if code.indices is None:
        part_BD = sparse.product(code.values, W_dec_FD, sae.matmul_dtype)
    else:
        part_BD = sparse.weighted_rows(code.values, code.indices, W_dec_FD, sae)
    return jax.lax.psum(part_BD, "feature")


class SparseAutoencoder(nnx.Module):
    """z = select(ReLU(W_enc (x - b_dec) + b_enc)), x_hat = W_dec z + b_dec.

    ``sae.architecture`` says what is selected. Parameters are float32. Both matrices are [F, D], a row a
    latent, so that sparse gradients touch whole rows. Methods run inside ``jax.shard_map`` over the axes
    of :mod:`revelio_jax.sae.sharding`; the parameters are then this device's latents.

    Sources: TopK, MultiTopK Gao et al. 2024 (arXiv 2406.04093), as used in arXiv 2501.19066; BatchTopK
    Bussmann et al. 2024 (arXiv 2412.06410); JumpReLU Rajamanoharan et al. 2024 (arXiv 2407.14435).
    """

    def __init__(self, params: dict[str, jax.Array], sae: SaeConfig):
        self.params = nnx.data({name: nnx.Param(value) for name, value in params.items()})
        self.sae = sae

    def __getitem__(self, name: str) -> jax.Array:
        return self.params[name][...]

    def codes(self, x_BD: jax.Array, k: jax.Array | int) -> tuple[Code, Code | None]:
        """The code of rows in training, and that of MultiTopK where it is asked for. k may be traced."""
        sae = self.sae
        if sae.architecture in ("dense", "jumprelu"):
            return self._dense(x_BD), None
        select = self._largest if sae.architecture == "topk" else self._above_kth
        most = self._slots(x_BD, slots(sae))
        return select(most, k), select(most, MULTI * k) if sae.multi_topk else None

    def infer(self, x_BD: jax.Array, threshold: jax.Array) -> Code:
        """The code of rows on their own.

        batch_topk then keeps what is above ``threshold``, but at most BATCH_SLOTS k latents of a row, the
        largest. An export, which is a jumprelu, has no such bound.
        """
        sae = self.sae
        if sae.architecture in ("dense", "jumprelu"):
            return self._dense(x_BD)
        if sae.architecture == "topk":
            return self._largest(self._slots(x_BD, sae.k), sae.k)
        most = self._largest(self._slots(x_BD, BATCH_SLOTS * sae.k), BATCH_SLOTS * sae.k)
        return most.where(most.values > threshold)

    def decode(self, code: Code) -> jax.Array:
        """Reconstruction [B, D], summed over the devices that share the latents."""
        return decode(code, self["W_dec_FD"], self.sae) + self["b_dec_D"]

    def _slots(self, x_BD: jax.Array, slots: int) -> Code:
        x_BD = x_BD - self["b_dec_D"]
        return Code(
            *sparse.candidates(
                x_BD, self["W_enc_FD"], self["b_enc_F"], slots, self.sae.matmul_dtype, self.sae.encode_chunk
            )
        )

    def l0_penalty(self, x_BD: jax.Array, k: jax.Array | int) -> jax.Array:
        """(L0 / k - 1)^2 of jumprelu, with L0 the mean over all rows; its gradient moves thresholds."""
        fires_BF = jump.fires(self._pre(x_BD), self._threshold(), self.sae.jump_bandwidth)
        l0 = total(fires_BF.sum()) / jax.lax.psum(len(x_BD), "data")
        return jnp.square(l0 / k - 1)

    def _dense(self, x_BD: jax.Array) -> Code:
        pre_BF = self._pre(x_BD)
        if self.sae.architecture == "jumprelu":
            return Code(jump.relu(pre_BF, self._threshold(), self.sae.jump_bandwidth))
        return Code(jax.nn.relu(pre_BF))

    def _pre(self, x_BD: jax.Array) -> jax.Array:
        # Before ReLU: after it, every latent that is far from firing would be near a small threshold.
        pre_BF = sparse.product(x_BD - self["b_dec_D"], self["W_enc_FD"].T, self.sae.matmul_dtype)
        return pre_BF + self["b_enc_F"]

    def _threshold(self) -> jax.Array:
        return jnp.exp(self["log_threshold_F"])

    def _largest(self, most: Code, k: jax.Array | int) -> Code:
        return most.where(topk.survivors(most.values, k, "feature"))

    def _above_kth(self, most: Code, k: jax.Array | int) -> Code:
        """k a row on average of the whole batch, at most BATCH_SLOTS k on one."""
        code = self._largest(most, BATCH_SLOTS * k)
        rows = jax.lax.psum(len(code.values), "data")
        return code.where(code.values >= topk.kth_largest(code.values, k * rows, None, total))
