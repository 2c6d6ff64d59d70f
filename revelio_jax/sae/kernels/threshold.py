"""The smallest value that top-k keeps in each row, and the last kept position among equal values, on a TPU.

Dense products need no sorted codes: both numbers of each row give the matrix of codes (:func:`topk.kept`). The kernel
reads the pre-activations once, a block of rows at a time, and finds ``low`` in the TPU's vector memory by bisection:
positive floats are ordered like their bits. It counts the values above a guess until every row of the block has a
guess with exactly k values above it: about 18 counts for normal random rows. Only exactly equal values need all 31.

The Pallas form was compiled for a TPU v5e, not run.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

ROWS = 8  # of a block: the sublanes of a vector register
LANES = 128
COLUMNS = 2048  # counted at the same time
MEMORY = 32 * 2**20  # bytes of vector memory for the two buffers of a block

Count = typing.Callable[[typing.Callable[[jax.Array, jax.Array], jax.Array]], jax.Array]


def xla(pre_BF: jax.Array, k: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Return the k-th largest of each row, but at least 0, [B] float32, and the last kept index [B], int32.

    Of values equal to the k-th largest, those with the lowest indices are kept, as ``jax.lax.top_k`` does. The second
    result may be any index from the last kept of them up to the next. If fewer than k values are above 0, the
    first result is 0, and the second has no meaning. k is at least 1 and at most F, and may be traced. Rows must
    not contain NaN.
    """
    largest_BF = -jnp.sort(-jnp.maximum(pre_BF, 0), 1)
    low_B1 = jax.lax.dynamic_slice_in_dim(largest_BF, k - 1, 1, 1)
    room_B1 = k - (pre_BF > low_B1).sum(1, keepdims=True)
    equal_BF = pre_BF == low_B1
    kept_BF = equal_BF & (jnp.cumsum(equal_BF, 1) <= room_B1)
    last_B = jnp.where(kept_BF, jnp.arange(pre_BF.shape[1], dtype=jnp.int32), 0).max(1)
    return low_B1[:, 0], last_B


def supports(latents: int) -> bool:
    """Return whether :func:`pallas` can handle rows of ``latents`` values."""
    return latents % LANES == 0 and 2 * ROWS * latents * 4 <= MEMORY


def pallas(pre_BF: jax.Array, k: jax.Array | int, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return the result of :func:`xla`. F must be a multiple of 128, and at most 524,288."""
    rows, latents = pre_BF.shape
    column_B1 = pl.BlockSpec((ROWS, 1), lambda block: (block, 0))
    array_type: typing.Any = jax.typeof(pre_BF)  # inside shard_map, results vary over the axes of their operand
    column = functools.partial(jax.ShapeDtypeStruct, (rows, 1), manual_axis_type=array_type.manual_axis_type)
    low_B1, last_B1 = pl.pallas_call(
        functools.partial(_block, columns=_columns(latents)),
        out_shape=(column(jnp.float32), column(jnp.int32)),
        grid=(pl.cdiv(rows, ROWS),),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec((ROWS, latents), lambda block: (block, 0))],
        out_specs=(column_B1, column_B1),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=2 * MEMORY),
        interpret=pltpu.InterpretParams() if interpret else False,
    )(jnp.asarray(k, jnp.int32)[None], pre_BF)
    return low_B1[:, 0], last_B1[:, 0]


def _block(k_ref: typing.Any, pre_RF: typing.Any, low_R1: typing.Any, last_R1: typing.Any, columns: int) -> None:
    """Bisect for a block of rows."""
    k, latents = k_ref[0], pre_RF.shape[1]

    def reduce_row(
        start: int, value: typing.Callable[[jax.Array, jax.Array], jax.Array], combine: typing.Callable[..., jax.Array]
    ) -> jax.Array:
        """Combine ``value(bits, indices)`` over the columns."""

        def some(i: jax.Array, sum_RC: jax.Array) -> jax.Array:
            at = pl.multiple_of(i * columns, LANES)
            bits_RC = jax.lax.bitcast_convert_type(jnp.maximum(pre_RF[:, pl.ds(at, columns)], 0), jnp.int32)
            return combine(sum_RC, value(bits_RC, at + jax.lax.broadcasted_iota(jnp.int32, bits_RC.shape, 1)))

        return jax.lax.fori_loop(0, latents // columns, some, jnp.full((ROWS, columns), start, jnp.int32))

    def count(condition: typing.Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        sum_RC = reduce_row(0, lambda bits, index: condition(bits, index).astype(jnp.int32), jnp.add)
        return sum_RC.sum(1, keepdims=True)

    # At least k values have bits >= floor_R1; exactly found_R1 of them. Bits above `bit` of floor_R1 are final.
    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        bit, _, found_R1 = state
        return (bit >= 0) & (found_R1 > k).any()

    def refine(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        bit, floor_R1, found_R1 = state
        guess_R1 = floor_R1 | (1 << bit)
        count_R1 = count(lambda bits, _: bits >= guess_R1)
        enough_R1 = (count_R1 >= k) & (found_R1 > k)
        floor_R1 = jnp.where(enough_R1, guess_R1, floor_R1)
        return bit - 1, floor_R1, jnp.where(enough_R1, count_R1, found_R1)

    start = jnp.int32(30), jnp.zeros((ROWS, 1), jnp.int32), jnp.full((ROWS, 1), latents, jnp.int32)
    _, floor_R1, found_R1 = jax.lax.while_loop(unfinished, refine, start)
    largest = jnp.iinfo(jnp.int32).max
    low_RC = reduce_row(largest, lambda bits, _: jnp.where(bits >= floor_R1, bits, largest), jnp.minimum)
    low_bits_R1 = low_RC.min(1, keepdims=True)

    # Where more than k values remain, they include values equal to the smallest: bisect for the last index to keep.
    # The condition is that fewer than k values are above it or equal to it and before the index.
    tied_R1 = found_R1 > k

    def open_ties(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (state[0] >= 0) & (tied_R1 & (low_bits_R1 > 0)).any()

    def refine_tie(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        bit, last_R1 = state
        guess_R1 = last_R1 | (1 << bit)
        before_R1 = count(
            lambda bits, index: (bits > low_bits_R1) | ((bits == low_bits_R1) & (index < guess_R1)),
        )
        return bit - 1, jnp.where(before_R1 < k, guess_R1, last_R1)

    first = jnp.int32((latents - 1).bit_length() - 1), jnp.zeros((ROWS, 1), jnp.int32)
    _, tie_R1 = jax.lax.while_loop(open_ties, refine_tie, first)
    low_R1[:] = jax.lax.bitcast_convert_type(low_bits_R1, jnp.float32)
    last_R1[:] = jnp.where(tied_R1, tie_R1, latents - 1)


def _columns(latents: int) -> int:
    return max(size for size in range(LANES, min(latents, COLUMNS) + 1, LANES) if latents % size == 0)
