"""Codes with k latents per row: selecting them, and their products with the weight matrices.

The code of a row has K slots: values [B, K] and the indices [B, K] of their latents on this device. Functions run
inside ``jax.shard_map`` over the axes of :mod:`revelio_jax.sae.sharding`: rows are split over ``data``, latents
over ``feature``. Products read or write only the rows of latents in slots. A CPU goes through them in pieces that stay
in its cache; other platforms do each product in few large operations.
"""

import functools

import jax
import jax.numpy as jnp

from revelio_jax.config import SaeConfig
from revelio_jax.sae import topk

UNROLL = {"cpu": 4, "default": 8}  # slots of a row that are added in one operation
ENTRIES = 256  # entries added to a gradient at a time, so that their 256 rows of width D stay in the cache


def candidates(
    x_BD: jax.Array,
    W_enc_FD: jax.Array,
    b_enc_F: jax.Array,
    slots: int,
    matmul_dtype: str,
    encode_chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the ``slots`` largest of ReLU(W_enc x + b_enc) of each row, largest first.

    Return values [B, K] >= 0, float32, and indices [B, K], int32. ``encode_chunk`` latents are encoded at a time,
    so that at most B x ``encode_chunk`` pre-activations exist; None encodes all latents at once. Inputs of the
    product are rounded to ``matmul_dtype``.
    """
    latents = len(b_enc_F)
    chunk = encode_chunk or latents
    slots = min(slots, latents)

    def largest(W_enc_CD: jax.Array, b_enc_C: jax.Array) -> tuple[jax.Array, jax.Array]:
        return topk.top_k(product(x_BD, W_enc_CD.T, matmul_dtype), min(slots, len(b_enc_C)), b_enc_C)

    def merge(best: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        pre_BC, indices_BC = largest(
            jax.lax.dynamic_slice_in_dim(W_enc_FD, start, chunk),
            jax.lax.dynamic_slice_in_dim(b_enc_F, start, chunk),
        )
        # The best so far come first: of equal values, the lower index wins.
        pre_BC = jnp.concatenate([best[0], pre_BC], 1)
        indices_BC = jnp.concatenate([best[1], indices_BC + start], 1)
        pre_BK, at_BK = jax.lax.top_k(pre_BC, slots)
        return (pre_BK, jnp.take_along_axis(indices_BC, at_BK, 1)), None

    first = latents  # number of latents in the first piece, before the whole chunks
    if chunk < latents:
        first = latents % chunk or chunk
        while first < slots:
            first += chunk
    pre_BK, indices_BK = largest(W_enc_FD[:first], b_enc_F[:first])
    if first < latents:
        starts = jnp.arange(first, latents, chunk)
        (pre_BK, indices_BK), _ = jax.lax.scan(merge, (pre_BK, indices_BK), starts)
    return jax.nn.relu(pre_BK), indices_BK  # after the selection, which it does not change for positive values


def product(a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """Return a @ b with inputs rounded to ``dtype`` and sums in float32."""
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def weighted_rows(values_BK: jax.Array, indices_BK: jax.Array, W_FD: jax.Array) -> jax.Array:
    """Return the sum over k of values_BK times the rows indices_BK of W_FD: [B, D] float32."""

    def slot(sum_BD: jax.Array, value_and_index: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        values_B, indices_B = value_and_index
        return sum_BD + values_B[:, None] * W_FD[indices_B], None

    def loop(values_KB: jax.Array, indices_KB: jax.Array, unroll: int) -> jax.Array:
        # Over slots, because one gather of all rows would be an array [B, K, D].
        first_BD = values_KB[0, :, None] * W_FD[indices_KB[0]]
        return jax.lax.scan(slot, first_BD, (values_KB[1:], indices_KB[1:]), unroll=unroll)[0]

    forms = {name: functools.partial(loop, unroll=slots) for name, slots in UNROLL.items()}
    return jax.lax.platform_dependent(values_BK.T, indices_BK.T, **forms)


def dots(rows_BD: jax.Array, indices_BK: jax.Array, W_FD: jax.Array) -> jax.Array:
    """Return the dot products of rows_BD with the rows indices_BK of W_FD: [B, K] float32."""

    def by_slot(rows_BD: jax.Array, indices_BK: jax.Array, W_FD: jax.Array) -> jax.Array:
        return jax.lax.map(lambda indices_B: (rows_BD * W_FD[indices_B]).sum(-1), indices_BK.T).T

    def at_once(rows_BD: jax.Array, indices_BK: jax.Array, W_FD: jax.Array) -> jax.Array:
        return (rows_BD[:, None] * W_FD[indices_BK]).sum(-1)  # XLA fuses the gather into the sum

    return jax.lax.platform_dependent(rows_BD, indices_BK, W_FD, cpu=by_slot, default=at_once)


def add_outer(
    start_FD: jax.Array, values_BK: jax.Array, indices_BK: jax.Array, rows_BD: jax.Array, sae: SaeConfig
) -> jax.Array:
    """Add values_BK times rows_BD to the rows indices_BK of start_FD and return the sum: [F, D].

    On an accelerator many entries would add to a row at the same time, in an order that changes from run to run.
    Therefore a whole product with the code as a matrix replaces the sum, unless config.sae.products is atomic.
    """

    def as_product(start_FD: jax.Array, values_BK: jax.Array, indices_BK: jax.Array, rows_BD: jax.Array) -> jax.Array:
        z_FB = _matrix(values_BK, indices_BK, len(start_FD), sae.matmul_dtype)
        return start_FD + product(z_FB, rows_BD, sae.matmul_dtype)

    def atomic(start_FD: jax.Array, values_BK: jax.Array, indices_BK: jax.Array, rows_BD: jax.Array) -> jax.Array:
        rows_BD = rows_BD.astype(sae.matmul_dtype)
        entries_ED = values_BK.reshape(-1, 1) * jnp.repeat(rows_BD, values_BK.shape[1], 0)
        return start_FD.at[indices_BK.reshape(-1)].add(entries_ED)

    default = atomic if sae.products == "atomic" else as_product
    return jax.lax.platform_dependent(start_FD, values_BK, indices_BK, rows_BD, cpu=_scatter, default=default)


def sums(values_BK: jax.Array, indices_BK: jax.Array, latents: int, sae: SaeConfig) -> jax.Array:
    """Return the sum of the values of each latent: [F]. Their order is fixed unless config.sae.products is atomic."""

    def in_order(values_BK: jax.Array, indices_BK: jax.Array) -> jax.Array:
        return jnp.zeros_like(values_BK, shape=latents).at[indices_BK].add(values_BK)

    def of_matrix(values_BK: jax.Array, indices_BK: jax.Array) -> jax.Array:
        return _matrix(values_BK, indices_BK, latents, sae.matmul_dtype).sum(1, dtype=values_BK.dtype)

    default = in_order if sae.products == "atomic" else of_matrix
    return jax.lax.platform_dependent(values_BK, indices_BK, cpu=in_order, default=default)


def _matrix(values_BK: jax.Array, indices_BK: jax.Array, latents: int, dtype: str) -> jax.Array:
    """Return codes as a matrix [F, B] of ``dtype``. The indices of a row are distinct, so that nothing is added."""
    rows_B1 = jnp.arange(len(values_BK))[:, None]
    z_FB = jnp.zeros_like(values_BK, dtype, shape=(latents, len(values_BK)))
    return z_FB.at[indices_BK, rows_B1].set(values_BK.astype(dtype), unique_indices=True)


def _scatter(start_FD: jax.Array, values_BK: jax.Array, indices_BK: jax.Array, rows_BD: jax.Array) -> jax.Array:
    """Add the entries of codes in the order of their latents.

    The matrix exceeds every cache, and sorted entries pass over it once from top to bottom. Only the smaller
    ``rows_BD`` is read out of order.
    """
    latents, slots = len(start_FD), values_BK.shape[1]
    entries = indices_BK.size
    most = 2**32 // (latents + 1)  # largest number of entries to sort together, so that a key fits 32 bits
    block = -(-entries // -(-entries // most))
    padding = -entries % block
    indices_E = jnp.pad(indices_BK.reshape(-1), (0, padding), constant_values=latents)
    keys_NE = indices_E.reshape(-1, block).astype(jnp.uint32) * block + jnp.arange(block, dtype=jnp.uint32)
    keys_NE = jnp.sort(keys_NE, 1)  # a key combines latent and entry, and sorts much faster than pairs
    first_N1 = block * jnp.arange(len(keys_NE), dtype=jnp.int32)[:, None]
    at_NE = (keys_NE % block).astype(jnp.int32) + first_N1

    def add_entries(sum_FD: jax.Array, entries: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        indices_C, at_C = entries
        values_C = values_BK.reshape(-1)[at_C]
        return sum_FD.at[indices_C].add(values_C[:, None] * rows_BD[at_C // slots], mode="drop"), None

    def chunks(flat: jax.Array, fill: int) -> jax.Array:
        flat = jnp.pad(flat.reshape(-1), (0, -flat.size % ENTRIES), constant_values=fill)
        return flat.reshape(-1, ENTRIES)

    indices_NE = (keys_NE // block).astype(jnp.int32)
    return jax.lax.scan(add_entries, start_FD, (chunks(indices_NE, latents), chunks(at_NE, 0)))[0]
