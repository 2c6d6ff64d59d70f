"""Exact top-k: of a row, of a row whose latents are split between devices, and by threshold."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

GROUP = 16


def top_k(x_BF: jax.Array, k: int, bias_F: jax.Array | float = 0.0) -> tuple[jax.Array, jax.Array]:
    """The k largest of every row of x + bias, largest first; among equals the lowest index first.

    Returns values [B, k] and int32 indices [B, k], identical to ``jax.lax.top_k(x + bias, k)``, which
    reads every element k-heap-wise; but where fewer than k are above -inf, what fills the row may repeat
    an index. Maxima of groups of neighbours are formed first, then only groups are searched. x + bias is
    formed in reductions and for the candidates, never whole. On a CPU by a tournament, elsewhere in two
    stages. Rows that do not split into more than k whole groups go to ``lax.top_k``.
    """
    width = x_BF.shape[1]
    bias_F = jnp.broadcast_to(bias_F, width)
    if width % GROUP or width // GROUP <= k:
        return tuple(jax.lax.top_k(x_BF + bias_F, k))
    forms = {"cpu": tournament, "default": two_stages}
    return jax.lax.platform_dependent(
        x_BF, bias_F, **{name: functools.partial(form, k=k) for name, form in forms.items()}
    )


def two_stages(x_BF: jax.Array, bias_F: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Only the k groups with the largest maxima can hold one of the k largest elements.

    The maximum of each of them comes before every element of any other group.
    """
    rows = len(x_BF)
    x_BGM, bias_GM = x_BF.reshape(rows, -1, GROUP), bias_F.reshape(-1, GROUP)
    _, groups_BK = jax.lax.top_k((x_BGM + bias_GM).max(-1), k)
    groups_BK = jnp.sort(groups_BK, 1)  # candidates in order of index, so that ties stay lowest first
    candidates = jnp.take_along_axis(x_BGM, groups_BK[:, :, None], 1) + bias_GM[groups_BK]
    values_BK, at_BK = jax.lax.top_k(candidates.reshape(rows, k * GROUP), k)
    indices_BK = jnp.take_along_axis(groups_BK, at_BK // GROUP, 1) * GROUP + at_BK % GROUP
    return values_BK, indices_BK


def tournament(x_BF: jax.Array, bias_F: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """k times the winner of every row leaves, and the maxima of its group and of its group's group change.

    All rows move together, in operations that XLA splits over cores, as it does not split ``lax.top_k``.
    """
    rows = len(x_BF)
    row_B, member_M = jnp.arange(rows), jnp.arange(GROUP)
    x_BGM, bias_GM = x_BF.reshape(rows, -1, GROUP), bias_F.reshape(-1, GROUP)
    of_groups = (x_BGM + bias_GM).max(-1)
    of_groups = jnp.pad(of_groups, ((0, 0), (0, -of_groups.shape[1] % GROUP)), constant_values=-jnp.inf)
    of_groups_BHM = of_groups.reshape(rows, -1, GROUP)
    left_BG = jnp.full_like(of_groups, 2**GROUP - 1, jnp.int32)  # a bit for every member that is still in

    def play(state, _):
        of_halls_BH, of_groups_BHM, left_BG = state
        hall_B = _first_largest(of_halls_BH)
        groups_BM = of_groups_BHM[row_B, hall_B]
        in_hall_B = _first_largest(groups_BM)
        group_B = hall_B * GROUP + in_hall_B
        left_B = left_BG[row_B, group_B]
        members_BM = x_BGM[row_B, group_B] + bias_GM[group_B]
        members_BM = jnp.where(left_B[:, None] >> member_M & 1, members_BM, -jnp.inf)
        winner_B = _first_largest(members_BM)
        others_BM = jnp.where(member_M == winner_B[:, None], -jnp.inf, members_BM)
        of_group_B = others_BM.max(1)
        groups_BM = jnp.where(member_M == in_hall_B[:, None], of_group_B[:, None], groups_BM)
        here_BH = jnp.arange(of_halls_BH.shape[1]) == hall_B[:, None]
        state = (
            jnp.where(here_BH, groups_BM.max(1)[:, None], of_halls_BH),
            of_groups_BHM.at[row_B, hall_B, in_hall_B].set(of_group_B, unique_indices=True),
            left_BG.at[row_B, group_B].set(left_B & ~(1 << winner_B), unique_indices=True),
        )
        return state, (members_BM.max(1), group_B * GROUP + winner_B)

    state = of_groups_BHM.max(-1), of_groups_BHM, left_BG
    _, (values_KB, indices_KB) = jax.lax.scan(play, state, length=k)
    return values_KB.T, indices_KB.T


def _first_largest(x_BM: jax.Array) -> jax.Array:
    """Index of the largest of every row, the first of equals; ``argmax``, but in two vectorised passes."""
    at_BM = jnp.where(x_BM == x_BM.max(1, keepdims=True), jnp.arange(x_BM.shape[1]), x_BM.shape[1] - 1)
    return at_BM.min(1).astype(jnp.int32)


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


def kth_largest(
    x: jax.Array, k: jax.Array | int, axis: int | None, total: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The k-th largest of the float32 values x >= 0 along ``axis`` and over devices.

    ``total`` sums over the devices that hold parts. With ``axis`` None it is that of all elements. Keeps
    the axis with size 1. 0 where fewer than k are above 0. Found bit by bit: floats >= 0 are ordered as
    their bits are, so 31 counts of the elements above a guess do what a sort would, in passes that every
    device makes over its own elements.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)

    def refine(bit, floor):
        guess = floor | (1 << (30 - bit))
        return jnp.where(total((bits >= guess).sum(axis, keepdims=True)) >= k, guess, floor)

    start = total(jnp.zeros_like(bits).sum(axis, keepdims=True))
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, refine, start), jnp.float32)
