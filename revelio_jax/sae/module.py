"""The sparse autoencoder as a Flax module: encoding rows into codes and decoding codes into rows."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from revelio_jax.config import SaeConfig
from revelio_jax.sae import forms, jump, sparse, topk
from revelio_jax.sae.code import Code
from revelio_jax.sae.kernels import threshold
from revelio_jax.sae.sharding import total
from revelio_jax.sae.sparse import product

# batch_topk: slots of a row as a multiple of k. If more latents are above the threshold, the smallest are lost.
BATCH_SLOTS = 4
MULTI = 4  # MultiTopK also reconstructs with this multiple of k latents


def slots(sae: SaeConfig) -> int:
    """Return the number of slots of a row in training: the candidate latents for topk or batch_topk."""
    per_k = (MULTI if sae.multi_topk else 1) * (BATCH_SLOTS if sae.architecture == "batch_topk" else 1)
    return per_k * max(sae.k, sae.k_start or 0)


def candidates(
    x_BD: jax.Array, W_enc_FD: jax.Array, b_enc_F: jax.Array, slots: int, sae: SaeConfig
) -> tuple[Code, jax.Array | None]:
    """Return the ``slots`` largest of ReLU(W_enc x + b_enc) of each row as slots, largest first.

    For codes as matrices, also return the pre-activations W_enc x + b_enc [B, F], which :func:`represented` needs.
    """
    if forms.is_dense(sae):
        x_BF = product(x_BD, W_enc_FD.T, sae.matmul_dtype)
        values_BK, indices_BK = topk.top_k(x_BF, min(slots, len(b_enc_F)), b_enc_F)
        return Code(jax.nn.relu(values_BK), indices_BK), x_BF + b_enc_F
    return Code(*sparse.candidates(x_BD, W_enc_FD, b_enc_F, slots, sae.matmul_dtype, sae.encode_chunk)), None


def represented(code: Code, pre_BF: jax.Array | None) -> Code:
    """Return a selection of the slots of :func:`candidates` in the representation that config.sae.products sets."""
    return code if pre_BF is None else code.as_matrix(pre_BF)


def largest(
    x_BD: jax.Array,
    W_enc_FD: jax.Array,
    b_enc_F: jax.Array,
    counts: Sequence[jax.Array | int],
    slots: int,
    sae: SaeConfig,
) -> list[Code]:
    """Return for each k of ``counts`` the code with the k largest latents of each row over all devices.

    Each k is at most ``slots`` and may be traced.
    """
    if sae.products == "threshold":
        pre_BF = product(x_BD, W_enc_FD.T, sae.matmul_dtype) + b_enc_F
        thresholds = [threshold.pallas(pre_BF, jnp.minimum(k, len(b_enc_F))) for k in counts]
        return [Code.of_kept(pre_BF, *of_rows) for of_rows in thresholds]
    found, pre_BF = candidates(x_BD, W_enc_FD, b_enc_F, slots, sae)
    kept = [found.where(topk.survivors(found.values, k, "feature")) for k in counts]
    return [represented(code, pre_BF) for code in kept]


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
        counts = [k, MULTI * k] if sae.multi_topk else [k]
        if sae.architecture == "topk":
            codes = largest(x_BD - self["b_dec_D"], self["W_enc_FD"], self["b_enc_F"], counts, slots(sae), sae)
        else:
            candidates, pre_BF = self._candidates(x_BD, slots(sae))
            codes = [represented(self._above_kth(candidates, k), pre_BF) for k in counts]
        return codes[0], codes[1] if sae.multi_topk else None

    def infer(self, x_BD: jax.Array, threshold: jax.Array) -> Code:
        """Return the inference code of rows. The code of a row does not depend on the other rows of the batch.

        batch_topk keeps values above ``threshold``, at most the BATCH_SLOTS k largest of a row. An exported
        batch_topk is a jumprelu without this bound.
        """
        sae = self.sae
        if sae.architecture in ("dense", "jumprelu"):
            return self._dense(x_BD)
        per_k = 1 if sae.architecture == "topk" else BATCH_SLOTS
        candidates, pre_BF = self._candidates(x_BD, per_k * sae.k)
        code = self._largest(candidates, per_k * sae.k)
        if sae.architecture == "batch_topk":
            code = code.where(code.values > threshold)
        return represented(code, pre_BF)

    def decode(self, code: Code) -> jax.Array:
        """Return the reconstruction [B, D], summed over the ``feature`` axis."""
        return code.decode(self["W_dec_FD"], self.sae) + self["b_dec_D"]

    def _candidates(self, x_BD: jax.Array, slots: int) -> tuple[Code, jax.Array | None]:
        """Return the largest latents as slots, and for codes as matrices the pre-activations [B, F]."""
        x_BD = x_BD - self["b_dec_D"]
        return candidates(x_BD, self["W_enc_FD"], self["b_enc_F"], slots, self.sae)

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
        pre_BF = product(x_BD - self["b_dec_D"], self["W_enc_FD"].T, self.sae.matmul_dtype)
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
