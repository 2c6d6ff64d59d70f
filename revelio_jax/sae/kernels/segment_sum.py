"""Gradient of a weight matrix from sparse codes, as sums over the entries of each latent.

Row f of the gradient is the sum of value times row over the entries with index f. Two numbers of each of its rows are
needed later: the squared norm and the dot product with the weights. Computing them from the finished matrix would
read it again. The kernel has the row in registers.

Entries are sorted by latent. Each block of the kernel owns one latent and a tile of columns, and adds in the order of
entries. A latent that fires on most rows would keep its block busy for long, so a first kernel adds up windows of
WINDOW sorted entries that belong to one latent, and the second kernel uses these sums.

The Pallas form was compiled for an H100, not run.
"""

import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from revelio_jax.sae.kernels import hopper

WINDOW = 128  # sorted entries that one block adds up
UNROLL = 4  # entries that a block reads at the same time
COLUMNS = 1024  # of the largest tile, which is 8 sums a thread

Sums = tuple[jax.Array, jax.Array]  # of values times rows, for a tile of columns, and of values


class Gradient(typing.NamedTuple):
    """A gradient [F, D], and for each of its rows [F] the squared norm, the dot product with the weights and a sum.

    ``sums_F`` are the sums of the values of each latent: the gradient of the encoder's bias. ``dots_F`` is None if no
    weights were given. All three are None if no kernel computed the gradient. Without the part along unit weights, the
    squared norm of a row is squares_F - dots_F**2.
    """

    grad_FD: jax.Array
    squares_F: jax.Array | None = None
    dots_F: jax.Array | None = None
    sums_F: jax.Array | None = None


def xla(
    values_BK: jax.Array,
    indices_BK: jax.Array,
    rows_BD: jax.Array,
    latents: int,
    W_FD: jax.Array | None = None,
    start_FD: jax.Array | None = None,
) -> Gradient:
    """Add values_BK times rows_BD to the rows indices_BK of ``start_FD``, or of zeros [latents, D].

    Values, W_FD and sums are float32; rows are float32 or bfloat16. Indices are at least 0. An entry whose index is
    not below ``latents`` is dropped. The compiler chooses the order of additions.
    """
    start_FD = jnp.zeros((latents, rows_BD.shape[1]), jnp.float32) if start_FD is None else start_FD
    entries_BKD = values_BK[:, :, None] * rows_BD[:, None].astype(jnp.float32)
    grad_FD = start_FD.at[indices_BK].add(entries_BKD, mode="drop")
    sums_F = jnp.zeros(latents, jnp.float32).at[indices_BK].add(values_BK, mode="drop")
    dots_F = None if W_FD is None else (grad_FD * W_FD).sum(1)
    return Gradient(grad_FD, jnp.square(grad_FD).sum(1), dots_F, sums_F)


def supports(width: int) -> bool:
    """Return whether :func:`pallas` can handle rows of ``width`` columns."""
    return hopper.column_tile(width, COLUMNS) > 0


def pallas(
    values_BK: jax.Array,
    indices_BK: jax.Array,
    rows_BD: jax.Array,
    latents: int,
    W_FD: jax.Array | None = None,
    start_FD: jax.Array | None = None,
    interpret: bool = False,
) -> Gradient:
    """Return the result of :func:`xla`, summed in a fixed order, so that two calls return the same bits.

    The width must be a multiple of 128. Two calls with the same indices in one jitted function share one sort.
    """
    width = rows_BD.shape[1]
    tile = hopper.column_tile(width, COLUMNS)
    latents_E, at_E, starts_F = _sorted_entries(indices_BK, latents)
    entries = (values_BK.reshape(-1)[at_E], at_E // indices_BK.shape[1], rows_BD)
    windows, tiles = len(latents_E) // WINDOW, width // tile

    def window_body(latents_E: typing.Any, *refs: typing.Any) -> None:
        *entries, window_sums_ND, value_sums_N = refs
        window, part = hopper.block(tiles)
        columns = hopper.columns(part, tile)
        start = window * WINDOW
        first, last = latents_E[start], latents_E[start + WINDOW - 1]

        def add() -> None:
            sum_C, value_sum = _add(entries, columns, start, start + WINDOW, _zeros(tile))
            hopper.write(window_sums_ND, window, columns, sum_C)
            value_sums_N[window] = value_sum

        jax.lax.cond((first == last) & (last < latents), add, lambda: None)

    of_windows = hopper.launch(
        window_body,
        (jax.ShapeDtypeStruct((windows, width), jnp.float32), jax.ShapeDtypeStruct((windows,), jnp.float32)),
        windows * tiles,
        interpret,
    )(latents_E, *entries)

    optional = [array for array in (W_FD, start_FD) if array is not None]

    def latent_body(starts_F: typing.Any, *refs: typing.Any) -> None:
        *entries, window_sums_ND, value_sums_N = refs[:5]
        given = iter(refs[5 : 5 + len(optional)])
        weights = None if W_FD is None else next(given)
        start_sums = None if start_FD is None else next(given)
        grad_FD, squares_TF, sums_TF, *dots = refs[5 + len(optional) :]
        latent, part = hopper.block(tiles)
        columns = hopper.columns(part, tile)
        start, stop = starts_F[latent], starts_F[latent + 1]
        first, last = (start + WINDOW - 1) // WINDOW, stop // WINDOW  # windows that belong to this latent alone
        whole = first < last
        sums = _zeros(tile)
        if start_sums is not None:
            sums = hopper.in_tile(start_sums[latent, columns]), sums[1]

        def add_window(window: jax.Array, sums: Sums) -> Sums:
            return sums[0] + hopper.in_tile(window_sums_ND[window, columns]), sums[1] + value_sums_N[window]

        sums = _add(entries, columns, start, jnp.where(whole, first * WINDOW, stop), sums)
        sums = jax.lax.fori_loop(first, last, add_window, sums)
        sum_C, value_sum = _add(entries, columns, jnp.where(whole, last * WINDOW, stop), stop, sums)
        hopper.write(grad_FD, latent, columns, sum_C)
        squares_TF[part, latent] = (sum_C * sum_C).sum()
        sums_TF[part, latent] = value_sum
        if weights is not None:
            dots[0][part, latent] = (sum_C * hopper.in_tile(weights[latent, columns])).sum()

    by_tile = jax.ShapeDtypeStruct((tiles, latents), jnp.float32)
    grad_FD, squares_TF, sums_TF, *dots = hopper.launch(
        latent_body,
        (jax.ShapeDtypeStruct((latents, width), jnp.float32), *[by_tile] * (2 if W_FD is None else 3)),
        latents * tiles,
        interpret,
    )(starts_F, *entries, *of_windows, *optional)
    return Gradient(grad_FD, squares_TF.sum(0), dots[0].sum(0) if dots else None, sums_TF[0])


def _sorted_entries(indices_BK: jax.Array, latents: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sort entries by latent, and by row within a latent.

    Return the latent of each entry [E], its position in the codes [E], and the first entry of each latent [F + 1].
    E is a multiple of WINDOW; padding and dropped entries have the latent F and come last.
    """
    indices_E = jnp.minimum(indices_BK.reshape(-1).astype(jnp.uint32), latents)
    indices_E = jnp.pad(indices_E, (0, -indices_E.size % WINDOW), constant_values=latents)
    at_E = jnp.arange(indices_E.size, dtype=jnp.uint32)
    latents_E, at_E = jax.lax.sort((indices_E, at_E), num_keys=1, is_stable=True)
    starts_F = jnp.searchsorted(latents_E, jnp.arange(latents + 1, dtype=jnp.uint32), method="scan_unrolled")
    at_E = jnp.minimum(at_E, indices_BK.size - 1)  # padding, which is never read
    return latents_E.astype(jnp.int32), at_E.astype(jnp.int32), starts_F.astype(jnp.int32)


def _zeros(tile: int) -> Sums:
    return hopper.in_tile(jnp.zeros(tile, jnp.float32)), jnp.float32(0)


def _add(
    entries: typing.Sequence[typing.Any], columns: typing.Any, start: jax.Array, stop: jax.Array, sums: Sums
) -> Sums:
    """Add the sorted entries from ``start`` up to ``stop`` in their order."""
    values_E, sources_E, rows_BD = entries

    def add_few(few: jax.Array, sums: Sums) -> Sums:
        sum_C, value_sum = sums
        for i in range(UNROLL):
            entry = start + few * UNROLL + i
            within = jnp.minimum(entry, stop - 1)  # after the end, the last entry is read again and counts 0 times
            value = jnp.where(entry < stop, values_E[within], 0.0)
            row_C = hopper.in_tile(rows_BD[sources_E[within], columns].astype(jnp.float32))
            sum_C, value_sum = sum_C + value * row_C, value_sum + value
        return sum_C, value_sum

    return jax.lax.fori_loop(0, pl.cdiv(stop - start, UNROLL), add_few, sums)
