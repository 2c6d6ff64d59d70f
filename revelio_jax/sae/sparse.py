"""Encoder and decoder whose cost beyond the encoder product grows with k, not with the latents.

Both are scans over the k slots of a row: a slot gathers one row of a matrix for every row of the
batch, or adds one row to it. Gradients come through custom VJPs in the same way, and equal those of
the dense formulation. Functions here see one device's latents and know no mesh.
"""

import jax
import jax.numpy as jnp

from revelio_jax.sae import topk


@jax.custom_vjp
def decode(values_BK: jax.Array, indices_BK: jax.Array, W_dec_FD: jax.Array) -> jax.Array:
    """Sum over k of ``values`` times rows of W_dec: [B, D] float32, without bias."""
    return _gather(values_BK, indices_BK, W_dec_FD)


def _decode_forward(values_BK, indices_BK, W_dec_FD):
    return _gather(values_BK, indices_BK, W_dec_FD), (values_BK, indices_BK, W_dec_FD)


def _decode_backward(saved, grad_BD):
    values_BK, indices_BK, W_dec_FD = saved
    _, grad_values_KB = jax.lax.scan(
        lambda _, indices_B: (None, (grad_BD * W_dec_FD[indices_B]).sum(-1)), None, indices_BK.T
    )
    return grad_values_KB.T, None, _scatter(values_BK, indices_BK, grad_BD, W_dec_FD)


decode.defvjp(_decode_forward, _decode_backward)


def encode(
    x_BD: jax.Array, W_enc_FD: jax.Array, b_enc_F: jax.Array, b_dec_D: jax.Array, k: int, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """TopK(ReLU(W_enc (x - b_dec) + b_enc)) as values [B, K] >= 0 and indices [B, K] of latents.

    ``axis`` names the mesh axis over which the latents are split; then K slots hold this device's
    candidates, of which those not among the k largest of all devices have value 0. None, or an axis
    of one device, is the plain top-k.
    """
    return _encode(k, axis, x_BD, W_enc_FD, b_enc_F, b_dec_D)


def _encode_plain(k, axis, x_BD, W_enc_FD, b_enc_F, b_dec_D):
    pre_BF = pre_activations(x_BD, W_enc_FD, b_enc_F, b_dec_D)
    pre_BK, indices_BK = topk.top_k(pre_BF, min(k, pre_BF.shape[1]))
    values_BK = jax.nn.relu(pre_BK)  # after the selection: it moves no positive value in or out
    if axis is not None:
        values_BK = jnp.where(topk.survivors(values_BK, k, axis), values_BK, 0)
    return values_BK, indices_BK


def _encode_forward(k, axis, x_BD, W_enc_FD, b_enc_F, b_dec_D):
    values_BK, indices_BK = _encode_plain(k, axis, x_BD, W_enc_FD, b_enc_F, b_dec_D)
    return (values_BK, indices_BK), (values_BK, indices_BK, x_BD, W_enc_FD, b_dec_D)


def _encode_backward(k, axis, saved, grads):
    values_BK, indices_BK, x_BD, W_enc_FD, b_dec_D = saved
    grad_BK = jnp.where(values_BK > 0, grads[0], 0)
    grad_W_enc_FD = _scatter(grad_BK, indices_BK, x_BD - b_dec_D, W_enc_FD)
    grad_b_enc_F = jnp.zeros_like(W_enc_FD[:, 0]).at[indices_BK].add(grad_BK)
    grad_x_BD = _gather(grad_BK, indices_BK, W_enc_FD)  # XLA drops it where x is data
    # Summed over rows, the same as -grad_x_BD.sum(0), but one small product instead of k gathers.
    grad_b_dec_D = -(grad_b_enc_F @ W_enc_FD)
    return grad_x_BD, grad_W_enc_FD, grad_b_enc_F, grad_b_dec_D


_encode = jax.custom_vjp(_encode_plain, nondiff_argnums=(0, 1))
_encode.defvjp(_encode_forward, _encode_backward)


def pre_activations(
    x_BD: jax.Array, W_enc_FD: jax.Array, b_enc_F: jax.Array, b_dec_D: jax.Array
) -> jax.Array:
    """W_enc (x - b_dec) + b_enc: [B, F] float32."""
    return (x_BD - b_dec_D) @ W_enc_FD.T + b_enc_F


def _gather(values_BK, indices_BK, W_FD):
    """Sum over k of values_BK times rows indices_BK of W_FD: [B, D]."""
    start = jnp.zeros_like(W_FD, shape=(len(values_BK), W_FD.shape[1]))

    def slot(sum_BD, value_and_index):
        values_B, indices_B = value_and_index
        return sum_BD + values_B[:, None] * W_FD[indices_B], None

    return jax.lax.scan(slot, start, (values_BK.T, indices_BK.T))[0]


def _scatter(values_BK, indices_BK, rows_BD, like_FD):
    """values_BK times rows_BD, added to rows indices_BK of a zero matrix [F, D]."""

    def slot(sum_FD, value_and_index):
        values_B, indices_B = value_and_index
        return sum_FD.at[indices_B].add(values_B[:, None] * rows_BD), None

    return jax.lax.scan(slot, jnp.zeros_like(like_FD), (values_BK.T, indices_BK.T))[0]
