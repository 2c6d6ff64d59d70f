"""Exact top-k: of a row, of a row whose latents are split between devices, and by threshold."""

import jax
import jax.numpy as jnp

GROUP = 16


def top_k(
    x_BF: jax.Array, k: int, bias_F: jax.Array | float = 0.0, group: int = GROUP
) -> tuple[jax.Array, jax.Array]:
    """The k largest of every row of x + bias, largest first; among equals the lowest index first.

    Returns values [B, k] and int32 indices [B, k], identical to ``jax.lax.top_k(x + bias, k)``, which
    reads every element k-heap-wise. Here the maxima of groups of ``group`` neighbours are searched
    first. Only the k groups with the largest maxima can hold one of the k largest elements: the maximum
    of each of them comes before every element of any other group. x + bias is formed in the reduction
    and for the candidates, never whole. Rows that do not split into more than k whole groups go to
    ``lax.top_k``.
    """
    rows, width = x_BF.shape
    if width % group or width // group <= k:
        return tuple(jax.lax.top_k(x_BF + bias_F, k))
    x_BGM = x_BF.reshape(rows, width // group, group)
    bias_GM = jnp.broadcast_to(bias_F, width).reshape(width // group, group)
    _, groups_BK = jax.lax.top_k((x_BGM + bias_GM).max(-1), k)
    groups_BK = jnp.sort(groups_BK, 1)  # candidates in order of index, so that ties stay lowest first
    candidates = jnp.take_along_axis(x_BGM, groups_BK[:, :, None], 1) + bias_GM[groups_BK]
    values_BK, at_BK = jax.lax.top_k(candidates.reshape(rows, k * group), k)
    indices_BK = jnp.take_along_axis(groups_BK, at_BK // group, 1) * group + at_BK % group
    return values_BK, indices_BK


def survivors(values_BK: jax.Array, k: jax.Array | int, axis: str) -> jax.Array:
    """Which of each device's candidates are among the k largest over the mesh axis ``axis``.

    ``values_BK`` are the local top-K, largest first, K at least k or all there are, and devices hold
    ascending ranges of latents. k may be traced. Returns a boolean mask [B, K], with exactly k (or
    all, if there are fewer) set over the axis. The k-th largest value is the threshold. Of the
    candidates equal to it the first in order of (device, slot) survive, which is the order of the
    latents' global index. Only values are exchanged: B x K x devices numbers, whatever the number of
    latents.
    """
    devices, slots = jax.lax.axis_size(axis), values_BK.shape[1]
    if devices == 1:
        return jnp.broadcast_to(jnp.arange(slots) < k, values_BK.shape)
    all_BA = jax.lax.all_gather(values_BK, axis, axis=1, tiled=True)
    kept = jnp.minimum(k, devices * slots)
    largest_BA = -jnp.sort(-all_BA, 1)
    threshold_B1 = jax.lax.dynamic_slice_in_dim(largest_BA, kept - 1, 1, 1)
    above_BA = all_BA > threshold_B1
    equal_BA = all_BA == threshold_B1
    room_B1 = kept - above_BA.sum(1, keepdims=True)
    keep_BA = above_BA | (equal_BA & (jnp.cumsum(equal_BA, 1) <= room_B1))
    return jax.lax.dynamic_slice_in_dim(keep_BA, jax.lax.axis_index(axis) * slots, slots, 1)


def kth_largest(x: jax.Array, k: jax.Array | int, axis: int | None, mesh_axes: tuple[str, ...]) -> jax.Array:
    """The k-th largest of the float32 values x >= 0 along ``axis`` and over ``mesh_axes``.

    With ``axis`` None that of all elements. Keeps the axis with size 1. 0 where fewer than k are above
    0. Found bit by bit: floats >= 0 are ordered as their bits are, so 31 counts of the elements above a
    guess do what a sort would, in passes that every device makes over its own elements.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)

    def refine(bit, floor):
        guess = floor | (1 << (30 - bit))
        count = jax.lax.psum((bits >= guess).sum(axis, keepdims=True), mesh_axes)
        return jnp.where(count >= k, guess, floor)

    start = jax.lax.psum(jnp.zeros_like(bits).sum(axis, keepdims=True), mesh_axes)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, refine, start), jnp.float32)
