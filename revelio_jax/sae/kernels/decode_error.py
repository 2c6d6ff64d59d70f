"""Error of a reconstruction and its dot products with the decoder rows that made it, in one pass over these rows.

The reconstruction needs the K rows of a code, and the gradient of the code needs them again, for their dot products
with the error. Columns are independent until the dot products are summed. So a block of the kernel owns one row of
the batch and a tile of columns, reads the tile of the K decoder rows once, and keeps it in registers. No
array [B, K, D] exists. The sums over columns are finished outside the kernel, in a fixed order.

The Pallas form was compiled for an H100, not run.
"""

import typing

import jax
import jax.numpy as jnp

from revelio_jax.sae.kernels import hopper

SLOTS = 32  # with more slots the plain form is faster, by arithmetic
HELD = 16384  # elements of the decoder rows that a block keeps in registers, 128 a thread


class Decoded(typing.NamedTuple):
    """x minus its reconstruction [B, D], the dot products [B, K] and the squared norm of the error [B]; float32."""

    error_BD: jax.Array
    dots_BK: jax.Array
    squares_B: jax.Array


def xla(
    values_BK: jax.Array, indices_BK: jax.Array, W_dec_FD: jax.Array, x_BD: jax.Array, b_dec_D: jax.Array
) -> Decoded:
    """Return the error of the reconstruction and its dot products with the rows indices_BK of W_dec_FD.

    The reconstruction is b_dec_D plus the sum over K of values_BK times the rows. W_dec_FD is float32 or bfloat16,
    the other arrays and all sums are float32. Indices must be in range; an unused slot has the value 0.
    """

    def row(slots: tuple[jax.Array, jax.Array]) -> jax.Array:
        values_B, indices_B = slots
        return values_B[:, None] * W_dec_FD[indices_B]

    def add(error_BD: jax.Array, slots: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return error_BD - row(slots), None

    start_BD = x_BD - b_dec_D
    error_BD = jax.lax.scan(add, start_BD, (values_BK.T, indices_BK.T), unroll=4)[0]
    dots_BK = jax.lax.map(lambda indices_B: (error_BD * W_dec_FD[indices_B]).sum(1), indices_BK.T).T
    return Decoded(error_BD, dots_BK, jnp.square(error_BD).sum(1))


def supports(width: int, slots: int) -> bool:
    """Return whether to use :func:`pallas` for rows of ``width`` columns with ``slots`` latents each."""
    return slots <= SLOTS and _tile(width, slots) > 0


def pallas(
    values_BK: jax.Array,
    indices_BK: jax.Array,
    W_dec_FD: jax.Array,
    x_BD: jax.Array,
    b_dec_D: jax.Array,
    interpret: bool = False,
) -> Decoded:
    """Return the result of :func:`xla`. The width must be a multiple of 256, and K at most 64."""
    (rows, width), slots = x_BD.shape, indices_BK.shape[1]
    tile = _tile(width, slots)
    tiles = width // tile

    def decode_body(*refs: typing.Any) -> None:
        values_BK, indices_BK, W_dec_FD, x_BD, b_dec_D, error_BD, dots_TBK, squares_TB = refs
        row, part = hopper.block(tiles)
        columns = hopper.columns(part, tile)
        held = [hopper.in_tile(W_dec_FD[indices_BK[row, k], columns]) for k in range(slots)]
        error_C = hopper.in_tile(x_BD[row, columns]) - hopper.in_tile(b_dec_D[columns])
        for k in range(slots):
            error_C = error_C - values_BK[row, k] * held[k].astype(jnp.float32)
        hopper.write(error_BD, row, columns, error_C)
        squares_TB[part, row] = (error_C * error_C).sum()
        # Otherwise the compiler keeps the rows in float32, in twice the registers.
        held = jax.lax.optimization_barrier(held)
        for k in range(slots):
            dots_TBK[part, row, k] = (error_C * held[k].astype(jnp.float32)).sum()

    error_BD, dots_TBK, squares_TB = hopper.launch(
        decode_body,
        (
            jax.ShapeDtypeStruct((rows, width), jnp.float32),
            jax.ShapeDtypeStruct((tiles, rows, slots), jnp.float32),
            jax.ShapeDtypeStruct((tiles, rows), jnp.float32),
        ),
        rows * tiles,
        interpret,
    )(values_BK, indices_BK, W_dec_FD, x_BD, b_dec_D)
    return Decoded(error_BD, dots_TBK.sum(0), squares_TB.sum(0))


def _tile(width: int, slots: int) -> int:
    return hopper.column_tile(width, HELD // slots, per_thread=2)  # 4 bytes of bfloat16
