"""The gradient of a weight matrix from a code, by the kernel of :mod:`.kernels.segment_sum` or without it."""

import typing

import jax

from revelio_jax.config import SaeConfig
from revelio_jax.sae.code import Code
from revelio_jax.sae.kernels import segment_sum


class Sums(typing.NamedTuple):
    """A gradient [F, D], and what the kernel knows of each of its rows [F]: see ``segment_sum.Gradient``."""

    grad_FD: jax.Array
    squares_F: jax.Array | None = None
    dots_F: jax.Array | None = None
    sums_F: jax.Array | None = None


def add(start_FD: jax.Array, code: Code, rows_BD: jax.Array, W_FD: jax.Array | None, sae: SaeConfig) -> Sums:
    """Return ``start_FD`` plus, for each latent, the sum over rows of its value times the row."""
    if sae.products != "kernels":
        return Sums(code.add_outer(start_FD, rows_BD, sae))
    rows_BD = rows_BD.astype(sae.matmul_dtype)
    return Sums(*segment_sum.pallas(code.values, code.latents, rows_BD, len(start_FD), W_FD, start_FD))
