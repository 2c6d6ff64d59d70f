"""Products with k latents a row, whose cost beyond the encoder product does not grow with the latents.

A row's code is K slots: values [B, K] and the indices [B, K] of their latents on this device. Functions
here run inside ``jax.shard_map`` over the axes of :mod:`revelio_jax.sharding`: rows are split over
``data``, latents over ``feature``. Gradients come through custom VJPs and equal those of the dense
formulation. What they need of a row is gathered over ``data`` before they are formed, so each device
forms the whole gradient of its own latents and what moves does not grow with the number of latents.
"""

import functools

import jax
import jax.numpy as jnp

from revelio_jax.sae import topk

ENTRIES = 256  # that are added to a gradient at a time: their rows, 256 x D, stay in the cache


def candidates(
    x_BD: jax.Array,
    W_enc_FD: jax.Array,
    b_enc_F: jax.Array,
    b_dec_D: jax.Array,
    slots: int,
    chunk: int = 0,
    dtype: str = "float32",
) -> tuple[jax.Array, jax.Array]:
    """The ``slots`` largest of ReLU(W_enc (x - b_dec) + b_enc) of every row, largest first.

    Returns values [B, K] >= 0, float32, and indices [B, K], int32. ``chunk`` latents at a time are
    encoded, all at once if 0: then at most B x chunk pre-activations exist. ``dtype`` is that of the
    product's inputs; it is summed in float32.
    """
    return _candidates(slots, chunk, dtype, x_BD, W_enc_FD, b_enc_F, b_dec_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _candidates(slots, chunk, dtype, x_BD, W_enc_FD, b_enc_F, b_dec_D):
    latents = len(b_enc_F)
    slots = min(slots, latents)

    def of(W_enc_CD, b_enc_C):
        pre_BC = product(x_BD - b_dec_D, W_enc_CD.T, dtype)
        return topk.top_k(pre_BC, min(slots, len(b_enc_C)), b_enc_C)

    if not 0 < chunk < latents:
        pre_BK, indices_BK = of(W_enc_FD, b_enc_F)
    else:

        def merge(best, start):
            pre_BC, indices_BC = of(
                jax.lax.dynamic_slice_in_dim(W_enc_FD, start, chunk),
                jax.lax.dynamic_slice_in_dim(b_enc_F, start, chunk),
            )
            # The best so far come first: among equals they have the lower index.
            both = [
                jnp.concatenate(pair, 1) for pair in zip(best, (pre_BC, indices_BC + start), strict=True)
            ]
            pre_BK, at_BK = jax.lax.top_k(both[0], slots)
            return (pre_BK, jnp.take_along_axis(both[1], at_BK, 1)), None

        # The last chunk would reach beyond the end: the first takes what is over.
        first = latents - (latents - 1) // chunk * chunk
        if first < slots:
            first += chunk
        best = of(W_enc_FD[:first], b_enc_F[:first])
        starts = jnp.arange(first, latents, chunk)
        (pre_BK, indices_BK), _ = jax.lax.scan(merge, best, starts)
    return jax.nn.relu(pre_BK), indices_BK  # after the selection: it moves no positive value in or out


def _candidates_forward(slots, chunk, dtype, x_BD, W_enc_FD, b_enc_F, b_dec_D):
    values_BK, indices_BK = _candidates(slots, chunk, dtype, x_BD, W_enc_FD, b_enc_F, b_dec_D)
    return (values_BK, indices_BK), (values_BK, indices_BK, x_BD, W_enc_FD, b_dec_D)


def _candidates_backward(slots, chunk, dtype, saved, grads):
    values_BK, indices_BK, x_BD, W_enc_FD, b_dec_D = saved
    grad_BK = jnp.where(values_BK > 0, grads[0], 0)
    grad_x_BD = _gather(grad_BK, indices_BK, W_enc_FD)  # XLA drops it where x is data
    grad_BK, indices_BK, x_BD = all_rows(grad_BK, indices_BK, x_BD)
    grad_W_enc_FD = _scatter(grad_BK, indices_BK, x_BD - b_dec_D, W_enc_FD)
    grad_b_enc_F = jnp.zeros_like(W_enc_FD[:, 0]).at[indices_BK].add(grad_BK)
    # Summed over rows, the same as -grad_x_BD.sum(0), but one small product instead of k gathers.
    grad_b_dec_D = -(grad_b_enc_F @ W_enc_FD)
    return grad_x_BD, grad_W_enc_FD, grad_b_enc_F, grad_b_dec_D


_candidates.defvjp(_candidates_forward, _candidates_backward)


def pre_activations(
    x_BD: jax.Array, W_enc_FD: jax.Array, b_enc_F: jax.Array, b_dec_D: jax.Array, dtype: str = "float32"
) -> jax.Array:
    """W_enc (x - b_dec) + b_enc: [B, F] float32."""
    return product(x_BD - b_dec_D, W_enc_FD.T, dtype) + b_enc_F


def product(a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """a @ b of inputs rounded to ``dtype``, summed in float32."""
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


@jax.custom_vjp
def decode(values_BK: jax.Array, indices_BK: jax.Array, W_dec_FD: jax.Array) -> jax.Array:
    """Sum over k of ``values`` times rows of W_dec: [B, D] float32, this device's part, without bias."""
    return _gather(values_BK, indices_BK, W_dec_FD)


def _decode_forward(values_BK, indices_BK, W_dec_FD):
    return _gather(values_BK, indices_BK, W_dec_FD), (values_BK, indices_BK, W_dec_FD)


def _decode_backward(saved, grad_BD):
    values_BK, indices_BK, W_dec_FD = saved
    _, grad_values_KB = jax.lax.scan(
        lambda _, indices_B: (None, (grad_BD * W_dec_FD[indices_B]).sum(-1)), None, indices_BK.T
    )
    return grad_values_KB.T, None, _scatter(*all_rows(values_BK, indices_BK, grad_BD), W_dec_FD)


decode.defvjp(_decode_forward, _decode_backward)


def all_rows(*arrays: jax.Array) -> list[jax.Array]:
    """Rows of all devices along ``data``, which then hold the same."""
    return [jax.lax.all_gather(array, "data", tiled=True, to="invarying") for array in arrays]


def _gather(values_BK, indices_BK, W_FD):
    """Sum over k of values_BK times rows indices_BK of W_FD: [B, D]."""

    def slot(sum_BD, value_and_index):
        values_B, indices_B = value_and_index
        return sum_BD + values_B[:, None] * W_FD[indices_B], None

    values_KB, indices_KB = values_BK.T, indices_BK.T
    first_BD = values_KB[0, :, None] * W_FD[indices_KB[0]]
    return jax.lax.scan(slot, first_BD, (values_KB[1:], indices_KB[1:]))[0]


def _scatter(values_BK, indices_BK, rows_BD, like_FD):
    """values_BK times rows_BD, added to rows indices_BK of a zero matrix [F, D].

    Entries are added in order of their latent: the matrix, which no cache holds, is then gone through
    once from top to bottom, while the smaller ``rows_BD`` is read here and there.
    """
    latents, slots = len(like_FD), values_BK.shape[1]
    entries = indices_BK.size
    most = 2**32 // (latents + 1)  # may be sorted together, so that a key fits 32 bits
    block = -(-entries // -(-entries // most))
    padding = -entries % block
    indices_E = jnp.pad(indices_BK.reshape(-1), (0, padding), constant_values=latents)
    keys_NE = indices_E.reshape(-1, block).astype(jnp.uint32) * block + jnp.arange(block, dtype=jnp.uint32)
    keys_NE = jnp.sort(keys_NE, 1)  # of latent and entry in one number, which sorts far faster than pairs
    first_N1 = block * jnp.arange(len(keys_NE), dtype=jnp.int32)[:, None]
    at_NE = (keys_NE % block).astype(jnp.int32) + first_N1

    def some(sum_FD, entry):
        indices_C, at_C = entry
        values_C = values_BK.reshape(-1)[at_C]
        return sum_FD.at[indices_C].add(values_C[:, None] * rows_BD[at_C // slots], mode="drop"), None

    def chunks(flat, fill):
        flat = jnp.pad(flat.reshape(-1), (0, -flat.size % ENTRIES), constant_values=fill)
        return flat.reshape(-1, ENTRIES)

    indices_NE = (keys_NE // block).astype(jnp.int32)
    return jax.lax.scan(some, jnp.zeros_like(like_FD), (chunks(indices_NE, latents), chunks(at_NE, 0)))[0]
