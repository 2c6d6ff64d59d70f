"""Exact top-k of a row, also if its latents are split over devices, and the k-th largest value as a threshold."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

COUNTS = 31  # of values above a guess, by which kth_largest finds a value
GROUP = 16  # elements of a group; on accelerators the smallest size


def top_k(x_BF: jax.Array, k: int, bias_F: jax.Array | float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Return the k largest of each row of x + bias, largest first. Of equal values, the lowest index comes first.

    Return values [B, k] and int32 indices [B, k], identical to ``jax.lax.top_k(x + bias, k)``, but faster. Off a CPU
    the indices of equal values that are not positive may differ: such latents do not fire. If fewer than k values are
    above -inf, the remaining slots may repeat an index on a CPU. The maxima of groups are computed first, and then only
    the best groups are searched. x + bias never exists as a whole array, except for narrow rows. A CPU uses
    :func:`tournament`, other platforms :func:`two_stages`. Rows that do not split into more than k whole groups use
    ``lax.top_k``.
    """
    width = x_BF.shape[1]
    bias_F = jnp.broadcast_to(bias_F, width)
    if width % GROUP or width // GROUP <= k:
        values_BK, indices_BK = jax.lax.top_k(x_BF + bias_F, k)
        return values_BK, indices_BK
    forms = {
        "cpu": tournament,
        "tpu": functools.partial(two_stages, strided=True),
        "default": functools.partial(two_stages, strided=False),
    }
    return jax.lax.platform_dependent(
        x_BF, bias_F, **{name: functools.partial(form, k=k) for name, form in forms.items()}
    )


def two_stages(x_BF: jax.Array, bias_F: jax.Array, k: int, strided: bool) -> tuple[jax.Array, jax.Array]:
    """Search only the groups with the largest maxima, which contain the largest elements.

    The maxima of these groups come before all elements of the other groups. A group is a range of neighbors, which a
    GPU reads together, or ``strided`` over the row, so that a TPU takes maxima of whole vectors. Both searches may
    return any of several equal elements, which spares a GPU a sort of the whole row. One element more than k is
    searched for: if it equals the k-th, which is rare, :func:`_first_equal` finds the first of the equal elements.
    """
    rows, width = x_BF.shape
    size = _group_size(width, k)
    groups, member_M = width // size, jnp.arange(size)
    pre_BF = x_BF + bias_F
    if strided:
        _, best_BK = _any_top_k(pre_BF.reshape(rows, size, groups).max(1), k + 1)
        members = best_BK[:, None] + groups * member_M[:, None]
    else:
        _, best_BK = _any_top_k(pre_BF.reshape(rows, groups, size).max(2), k + 1)
        members = size * best_BK[:, :, None] + member_M
    members_BC = members.reshape(rows, -1)
    candidates_BC = jnp.take_along_axis(x_BF, members_BC, 1) + bias_F[members_BC]
    values_BK, at_BK = _any_top_k(candidates_BC, k + 1)
    indices_BK = jnp.take_along_axis(members_BC, at_BK, 1)
    falling_BK, indices_BK = jax.lax.sort((-values_BK, indices_BK), num_keys=2)
    values_BK, indices_BK = -falling_BK[:, :k], indices_BK[:, :k]
    tied_B1 = (falling_BK[:, k - 1 : k] == falling_BK[:, k:]) & (values_BK[:, -1:] > 0)
    return values_BK, _first_equal(x_BF, bias_F, values_BK, indices_BK, tied_B1)


def _first_equal(
    x_BF: jax.Array, bias_F: jax.Array, values_BK: jax.Array, indices_BK: jax.Array, tied_B1: jax.Array
) -> jax.Array:
    """Return ``indices_BK``, but in tied rows the lowest indices of the elements that equal the last value.

    A loop passes over all elements once for each such slot of the row that has most of them, and not at all without
    tied rows.
    """
    low_B1 = values_BK[:, -1:]
    is_equal_BK = tied_B1 & (values_BK == low_B1)
    first_B1 = (values_BK > low_B1).sum(1, keepdims=True, dtype=jnp.int32)  # the slot of the first of them
    slot_K, index_F = jnp.arange(values_BK.shape[1], dtype=jnp.int32), jnp.arange(x_BF.shape[1], dtype=jnp.int32)
    count = is_equal_BK.sum(1, dtype=jnp.int32).max()

    def find(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        i, last_B1, indices_BK = state
        is_next_BF = (x_BF + bias_F == low_B1) & (index_F > last_B1)
        last_B1 = jnp.where(is_next_BF, index_F, len(index_F)).min(1, keepdims=True)
        is_slot_BK = is_equal_BK & (slot_K == first_B1 + i) & (last_B1 < len(index_F))
        return i + 1, last_B1, jnp.where(is_slot_BK, last_B1, indices_BK)

    start = jnp.zeros_like(count), jnp.full_like(first_B1, -1), indices_BK
    return jax.lax.while_loop(lambda state: state[0] < count, find, start)[2]


def _group_size(width: int, k: int) -> int:
    """Return the power of 2 from GROUP on that divides ``width`` and makes both stages about equally wide."""
    size = GROUP
    while size * size * k < width and width % (2 * size) == 0:
        size *= 2
    return size


def _any_top_k(x_BF: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return ``lax.top_k``, but any indices of equal values where this version of JAX can leave them open."""
    unstable = {"is_stable": False} if "is_stable" in inspect.signature(jax.lax.top_k).parameters else {}
    values_BK, indices_BK = jax.lax.top_k(x_BF, k, **unstable)
    return values_BK, indices_BK


def tournament(x_BF: jax.Array, bias_F: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Remove the largest element of each row k times, and update the maxima of its group and its hall.

    A hall is a group of groups. All rows advance together, in operations that XLA splits over cores, unlike
    ``lax.top_k``.
    """
    rows = len(x_BF)
    row_B, member_M = jnp.arange(rows), jnp.arange(GROUP)
    x_BGM, bias_GM = x_BF.reshape(rows, -1, GROUP), bias_F.reshape(-1, GROUP)
    group_max = (x_BGM + bias_GM).max(-1)
    group_max = jnp.pad(group_max, ((0, 0), (0, -group_max.shape[1] % GROUP)), constant_values=-jnp.inf)
    group_max_BHM = group_max.reshape(rows, -1, GROUP)
    left_BG = jnp.full_like(group_max, 2**GROUP - 1, jnp.int32)  # one bit for each remaining member

    def play(
        state: tuple[jax.Array, jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        hall_max_BH, group_max_BHM, left_BG = state
        hall_B = _first_largest(hall_max_BH)
        groups_BM = group_max_BHM[row_B, hall_B]
        in_hall_B = _first_largest(groups_BM)
        group_B = hall_B * GROUP + in_hall_B
        left_B = left_BG[row_B, group_B]
        members_BM = x_BGM[row_B, group_B] + bias_GM[group_B]
        members_BM = jnp.where(left_B[:, None] >> member_M & 1, members_BM, -jnp.inf)
        winner_B = _first_largest(members_BM)
        others_BM = jnp.where(member_M == winner_B[:, None], -jnp.inf, members_BM)
        new_max_B = others_BM.max(1)
        groups_BM = jnp.where(member_M == in_hall_B[:, None], new_max_B[:, None], groups_BM)
        is_hall_BH = jnp.arange(hall_max_BH.shape[1]) == hall_B[:, None]
        state = (
            jnp.where(is_hall_BH, groups_BM.max(1)[:, None], hall_max_BH),
            group_max_BHM.at[row_B, hall_B, in_hall_B].set(new_max_B, unique_indices=True),
            left_BG.at[row_B, group_B].set(left_B & ~(1 << winner_B), unique_indices=True),
        )
        return state, (members_BM.max(1), group_B * GROUP + winner_B)

    state = group_max_BHM.max(-1), group_max_BHM, left_BG
    _, (values_KB, indices_KB) = jax.lax.scan(play, state, length=k)
    return values_KB.T, indices_KB.T


def _first_largest(x_BM: jax.Array) -> jax.Array:
    """Return ``argmax`` of each row, the first of equal values, in two vectorized passes: int32 [B]."""
    at_BM = jnp.where(x_BM == x_BM.max(1, keepdims=True), jnp.arange(x_BM.shape[1]), x_BM.shape[1] - 1)
    return at_BM.min(1).astype(jnp.int32)


def kept(pre_BF: jax.Array, low_B: jax.Array, last_B: jax.Array) -> jax.Array:
    """Return pre_BF with zeros in place of the values that top-k does not keep: [B, F].

    Kept are the values of a row above ``low_B``, and those equal to it up to the index ``last_B``.
    """
    low_B1, last_B1 = low_B[:, None], last_B[:, None]
    index_F = jnp.arange(pre_BF.shape[1], dtype=jnp.int32)
    keep_BF = (pre_BF > low_B1) | ((pre_BF == low_B1) & (index_F <= last_B1))
    return jnp.where(keep_BF, pre_BF, 0)


def survivors(values_BK: jax.Array, k: jax.Array | int, axis: str) -> jax.Array:
    """Return the mask [B, K] of each device's candidates that are among the k largest over the mesh axis ``axis``.

    ``values_BK`` are the local top-K, largest first, with K at least k or all latents. Devices hold ascending
    ranges of latents. k may be traced. Over the axis exactly k entries are set, or all if fewer exist. The k-th
    largest value is the threshold. Of the candidates equal to it, the first by (device, slot) survive, which is the
    order of the global index. Devices exchange only values: B x K x devices numbers.
    """
    devices, slots = jax.lax.axis_size(axis), values_BK.shape[1]
    if devices == 1:
        return jnp.broadcast_to(jnp.arange(slots) < k, values_BK.shape)
    all_BA = jax.lax.all_gather(values_BK, axis, axis=1, tiled=True)
    count = jnp.minimum(k, devices * slots)
    largest_BA = -jnp.sort(-all_BA, 1)
    threshold_B1 = jax.lax.dynamic_slice_in_dim(largest_BA, count - 1, 1, 1)
    above_BA = all_BA > threshold_B1
    equal_BA = all_BA == threshold_B1
    room_B1 = count - above_BA.sum(1, keepdims=True)
    keep_BA = above_BA | (equal_BA & (jnp.cumsum(equal_BA, 1) <= room_B1))
    return jax.lax.dynamic_slice_in_dim(keep_BA, jax.lax.axis_index(axis) * slots, slots, 1)


def kth_largest(
    x: jax.Array, k: jax.Array | int, axis: int | None, total: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Return the k-th largest of the float32 values x >= 0 along ``axis``, or of all elements if it is None.

    ``total`` sums over the devices that hold parts of x. The axis remains with size 1. The result is 0 if fewer
    than k values are above 0. Floats >= 0 are ordered like their bits, so the result is found bit by bit. This
    replaces a sort by COUNTS counts of the elements above a guess, and each device counts its own elements.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)

    def refine(bit: jax.Array, floor: jax.Array) -> jax.Array:
        guess = floor | (1 << (COUNTS - 1 - bit))
        return jnp.where(total((bits >= guess).sum(axis, keepdims=True)) >= k, guess, floor)

    start = total(jnp.zeros_like(bits).sum(axis, keepdims=True))
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, COUNTS, refine, start), jnp.float32)
