"""Adam on the rows of a weight matrix in one pass.

The pass removes the part of the gradient along a unit row, clips, updates both moments, takes the step, scales the
row to norm 1 and writes a copy in bfloat16 for the next products. It moves 30 bytes per parameter: it reads four
float32 numbers, writes three, and writes the copy. A block of the kernel owns one row and keeps its new values in
registers until their norm is known. The matrices are updated in place.

The Pallas form was compiled for an H100, not run.
"""

import typing

import jax
import jax.numpy as jnp

from revelio_jax.sae import initial
from revelio_jax.sae.kernels import hopper

COLUMNS = 1024  # that a block reads at the same time
WIDTH = 16384  # largest width of a row that fits into registers, 128 numbers a thread


class Rows(typing.NamedTuple):
    """The new weights, both moments, and the weights in bfloat16: [F, D]."""

    W_FD: jax.Array
    m_FD: jax.Array
    v_FD: jax.Array
    rounded_FD: jax.Array


class Adam(typing.NamedTuple):
    """Adam's constants."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


def xla(
    W_FD: jax.Array,
    m_FD: jax.Array,
    v_FD: jax.Array,
    grad_FD: jax.Array,
    along_F: jax.Array | None,
    scale: jax.Array,
    learning_rate: jax.Array,
    count: jax.Array,
    adam: Adam,
) -> Rows:
    """Return the matrices after the step ``count``, which is 1 for the first, as ``optax.adam`` computes them.

    All arrays are float32, except that the first moment may be bfloat16; it is rounded after the step. ``along_F``
    are the dot products of the gradient with the unit rows of W_FD: that part of the gradient is removed, and the
    new rows have norm 1. None stands for rows of any norm. The gradient is multiplied by ``scale``; 0 replaces it
    by zeros, even if it is not finite.
    """
    if along_F is not None:
        grad_FD = grad_FD - along_F[:, None] * W_FD
    numbers = _numbers(scale, learning_rate, count, adam)
    new_FD, new_m_FD, new_v_FD = _step(W_FD, m_FD.astype(jnp.float32), v_FD, grad_FD, numbers, adam)
    if along_F is not None:
        new_FD = initial.unit_rows(new_FD)
    return Rows(new_FD, new_m_FD.astype(m_FD.dtype), new_v_FD, new_FD.astype(jnp.bfloat16))


def supports(width: int) -> bool:
    """Return whether :func:`pallas` can handle rows of ``width`` columns."""
    return width <= WIDTH and hopper.column_tile(width, COLUMNS) > 0


def pallas(
    W_FD: jax.Array,
    m_FD: jax.Array,
    v_FD: jax.Array,
    grad_FD: jax.Array,
    along_F: jax.Array | None,
    scale: jax.Array,
    learning_rate: jax.Array,
    count: jax.Array,
    adam: Adam,
    interpret: bool = False,
) -> Rows:
    """Return the result of :func:`xla`. The width must be a multiple of 128 and at most WIDTH."""
    rows, width = W_FD.shape
    tile = hopper.column_tile(width, COLUMNS)
    unit = along_F is not None

    def row_body(numbers: typing.Any, along_F: typing.Any, *refs: typing.Any) -> None:
        grad_FD, W_FD, m_FD, v_FD, rounded_FD = refs
        row, _ = hopper.block(1)
        scalars = tuple(numbers[i] for i in range(4))
        tiles = [hopper.columns(part, tile) for part in range(width // tile)]
        new: list[jax.Array] = []

        def write(columns: typing.Any, new_C: jax.Array) -> None:
            hopper.write(W_FD, row, columns, new_C)
            hopper.write(rounded_FD, row, columns, new_C.astype(jnp.bfloat16))

        for columns in tiles:
            W_C, v_C, grad_C = (hopper.in_tile(ref[row, columns]) for ref in (W_FD, v_FD, grad_FD))
            m_C = hopper.in_tile(m_FD[row, columns].astype(jnp.float32))
            if unit:
                grad_C = grad_C - along_F[row] * W_C
            new_C, m_C, v_C = _step(W_C, m_C, v_C, grad_C, scalars, adam)
            hopper.write(m_FD, row, columns, m_C.astype(m_FD.dtype))
            hopper.write(v_FD, row, columns, v_C)
            if unit:
                new.append(new_C)
            else:
                write(columns, new_C)
        if unit:
            norm = jnp.sqrt(sum((new_C * new_C).sum() for new_C in new))
            inverse = 1 / jnp.where(norm > 0, norm, 1.0)
            for columns, new_C in zip(tiles, new, strict=True):
                write(columns, new_C * inverse)

    numbers = jnp.stack(_numbers(scale, learning_rate, count, adam))
    W_ref, m_ref, v_ref = jax.new_ref(W_FD), jax.new_ref(m_FD), jax.new_ref(v_FD)
    rounded_FD = hopper.launch(row_body, jax.ShapeDtypeStruct((rows, width), jnp.bfloat16), rows, interpret)(
        numbers, jnp.zeros(1) if along_F is None else along_F, grad_FD, W_ref, m_ref, v_ref
    )
    return Rows(jax.freeze(W_ref), jax.freeze(m_ref), jax.freeze(v_ref), rounded_FD)


def _numbers(
    scale: jax.Array, learning_rate: jax.Array, count: jax.Array, adam: Adam
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the scale, the learning rate and the corrections of both moments as float32 scalars."""
    corrections = [1 - jnp.float32(decay) ** count for decay in (adam.b1, adam.b2)]
    return jnp.float32(scale), jnp.float32(learning_rate), corrections[0], corrections[1]


def _step(
    W: jax.Array,
    m: jax.Array,
    v: jax.Array,
    grad: jax.Array,
    numbers: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    adam: Adam,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the weights and moments after a step of Adam, in the order of operations of optax."""
    scale, learning_rate, correction1, correction2 = numbers
    zero = jnp.broadcast_to(scale, grad.shape) == 0  # Mosaic does not broadcast a condition
    grad = jnp.where(zero, 0.0, scale * grad)
    m = (1 - adam.b1) * grad + adam.b1 * m
    v = (1 - adam.b2) * (grad * grad) + adam.b2 * v
    return W - learning_rate * ((m / correction1) / (jnp.sqrt(v / correction2) + adam.eps)), m, v
