"""Exact top-k of a row, in two stages, and over latents that are split between devices."""

import jax
import jax.numpy as jnp

GROUP = 16


def top_k(x_BF: jax.Array, k: int, group: int = GROUP) -> tuple[jax.Array, jax.Array]:
    """The k largest of every row, largest first; among equals the lowest index first.

    Returns values [B, k] and int32 indices [B, k], identical to ``jax.lax.top_k``, which reads every
    element k-heap-wise. Here the maxima of groups of ``group`` neighbours are searched first. Only
    the k groups with the largest maxima can hold one of the k largest elements: the maximum of each
    of them comes before every element of any other group. Rows that do not split into more than k
    whole groups go to ``lax.top_k``.
    """
    rows, width = x_BF.shape
    if width % group or width // group <= k:
        return jax.lax.top_k(x_BF, k)
    x_BGM = x_BF.reshape(rows, width // group, group)
    _, groups_BK = jax.lax.top_k(x_BGM.max(-1), k)
    groups_BK = jnp.sort(groups_BK, 1)  # candidates in order of index, so that ties stay lowest first
    candidates = jnp.take_along_axis(x_BGM, groups_BK[:, :, None], 1).reshape(rows, k * group)
    values_BK, at_BK = jax.lax.top_k(candidates, k)
    indices_BK = jnp.take_along_axis(groups_BK, at_BK // group, 1) * group + at_BK % group
    return values_BK, indices_BK


def survivors(values_BK: jax.Array, k: int, axis: str) -> jax.Array:
    """Which of each device's candidates are among the k largest over the mesh axis ``axis``.

    ``values_BK`` are the local top-k, largest first, and devices hold ascending ranges of latents.
    Returns a boolean mask [B, K], with exactly k (or all, if there are fewer) set over the axis. The
    k-th largest value is the threshold. Of the candidates equal to it the first in order of (device,
    slot) survive, which is the order of the latents' global index. Only values are exchanged:
    B x K x devices numbers, whatever the number of latents.
    """
    devices = jax.lax.axis_size(axis)
    slots = values_BK.shape[1]
    if devices == 1 and slots <= k:
        return jnp.ones_like(values_BK, bool)
    all_BA = jax.lax.all_gather(values_BK, axis, axis=1, tiled=True)
    kept = min(k, devices * slots)
    threshold_B1 = jax.lax.top_k(all_BA, kept)[0][:, -1:]
    above_BA = all_BA > threshold_B1
    equal_BA = all_BA == threshold_B1
    room_B1 = kept - above_BA.sum(1, keepdims=True)
    keep_BA = above_BA | (equal_BA & (jnp.cumsum(equal_BA, 1) <= room_B1))
    return jax.lax.dynamic_slice_in_dim(keep_BA, jax.lax.axis_index(axis) * slots, slots, 1)
