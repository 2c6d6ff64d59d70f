"""AuxK, the auxiliary loss that revives dead latents (arXiv 2406.04093, A.2), and its gradients.

The k_aux strongest dead latents of each row reconstruct the error e = x - x_hat of the other latents. With
e_hat = W_dec z_dead, the loss is ||e - s e_hat||^2 / deviation. No gradient flows through e. The reconstruction of e
has no decoder bias, because x_hat contains it already.

Two parts differ from the paper, in which s = 1 and all gradients pass. Without them, AuxK kills latents: many random
directions overshoot a small error, the loss falls fastest if they stop firing, and behind ReLU a latent that fires on
no row has no gradient (measured in docs/measurements/sae_quality.md).

- s = <e, e_hat> / ||e_hat||^2 over all rows, limited to [0, 1], is the factor that best fits e_hat to e. The gradient
  on e_hat is -2 (e - s e_hat) / deviation, without a factor s, which would slow the revival of latents that overshoot.
- Of the gradient on z_dead only the part that raises values is kept: min(gradient, 0).
"""

import functools
import typing

import jax
import jax.numpy as jnp

from revelio_jax.config import SaeConfig
from revelio_jax.sae import sparse, topk
from revelio_jax.sae.module import Code, decode

MATRICES = ("W_enc_FD", "b_enc_F", "W_dec_FD")  # with an axis of latents

LossAndGradients = tuple[jax.Array, dict[str, jax.Array]]


class _Inputs(typing.NamedTuple):
    """The arguments of :func:`aux_k`, which its branches share."""

    params: dict[str, jax.Array]
    x_BD: jax.Array
    error_BD: jax.Array
    deviation: jax.Array
    dead_F: jax.Array
    sae: SaeConfig


def aux_k(
    params: dict[str, jax.Array],
    x_BD: jax.Array,
    error_BD: jax.Array,
    deviation: jax.Array,
    dead_F: jax.Array,
    sae: SaeConfig,
) -> LossAndGradients:
    """Return the AuxK loss without ``sae.aux_alpha``, and the gradients of aux_alpha times it.

    x_BD and error_BD have the rows of all devices. The gradients have the structure of ``params``. There are three
    kinds of branches. Without dead latents, a branch returns zeros. A few dead latents, the usual case, are gathered
    into one of several fixed sizes and multiplied densely, because k_aux is often close to their number. If there are
    many, top-k selects from them.
    """
    if not sae.k_aux:
        return jnp.zeros(()), _zeros(params)
    inputs = _Inputs(params, x_BD, error_BD, deviation, dead_F, sae)
    sizes = _sizes(len(dead_F), sae)
    branches = [
        lambda: (jnp.zeros(()), _zeros(params)),
        *(functools.partial(_few, inputs, size) for size in sizes),
        functools.partial(_many, inputs),
    ]
    # All devices must take the same branch, because branches contain collectives.
    most_dead = jax.lax.pmax(dead_F.sum(), "feature")
    branch = jnp.searchsorted(jnp.array([0, *sizes]), _largest_of_grid(most_dead))
    aux_loss, grads = jax.lax.switch(branch, branches)
    return jnp.where(most_dead > 0, aux_loss, 0), grads  # without dead latents all gradients are 0


@jax.custom_batching.custom_vmap
def _largest_of_grid(x: jax.Array) -> jax.Array:
    """Return x; under ``jax.vmap`` the maximum over members, unbatched, so that only one branch runs."""
    return x


@_largest_of_grid.def_vmap
def _(_: int, batched: list[bool], x_G: jax.Array) -> tuple[jax.Array, bool]:
    return (x_G.max(0) if batched[0] else x_G), False


def _few(inputs: _Inputs, size: int) -> LossAndGradients:
    """Return loss and gradients from ``size`` gathered latents. Slots without a dead latent read zeros."""
    params, x_BD, error_BD, deviation, dead_F, sae = inputs
    indices_C = jnp.nonzero(dead_F, size=size, fill_value=len(dead_F))[0]
    W_enc_CD, b_enc_C, W_dec_CD = (params[name].at[indices_C].get(mode="fill", fill_value=0) for name in MATRICES)
    x_BD -= params["b_dec_D"]
    z_BC = jax.nn.relu(sparse.product(x_BD, W_enc_CD.T, sae.matmul_dtype) + b_enc_C)
    if size * jax.lax.axis_size("feature") > sae.k_aux:
        sum_over_devices = functools.partial(jax.lax.psum, axis_name="feature")
        z_BC = jnp.where(z_BC >= topk.kth_largest(z_BC, sae.k_aux, 1, sum_over_devices), z_BC, 0)
    rest_BD = _rest(error_BD, decode(Code(z_BC), W_dec_CD, sae))
    grad_BD = -2 * sae.aux_alpha / deviation * rest_BD
    grad_z_BC = jnp.where(z_BC > 0, jnp.minimum(sparse.product(grad_BD, W_dec_CD.T, sae.matmul_dtype), 0), 0)
    grads = {
        "W_enc_FD": sparse.product(grad_z_BC.T, x_BD, sae.matmul_dtype),
        "b_enc_F": grad_z_BC.sum(0),
        "W_dec_FD": sparse.product(z_BC.T, grad_BD, sae.matmul_dtype),
    }
    start = _zeros(params)
    grad_b_dec_D = jax.lax.psum(-(grads["b_enc_F"] @ W_enc_CD), "feature")
    scattered = {name: start[name].at[indices_C].set(grads[name], mode="drop") for name in MATRICES}
    return jnp.square(rest_BD).sum() / deviation, start | scattered | {"b_dec_D": grad_b_dec_D}


def _many(inputs: _Inputs) -> LossAndGradients:
    """Return loss and gradients from k_aux slots of each row. The cost hardly depends on the number of dead latents."""
    params, x_BD, error_BD, deviation, dead_F, sae = inputs
    x_BD -= params["b_dec_D"]
    b_enc_F = jnp.where(dead_F, params["b_enc_F"], -jnp.inf)
    values_BK, indices_BK = sparse.candidates(
        x_BD, params["W_enc_FD"], b_enc_F, sae.k_aux, sae.matmul_dtype, sae.encode_chunk
    )
    code = Code(values_BK, indices_BK).where(topk.survivors(values_BK, sae.k_aux, "feature"))
    rest_BD = _rest(error_BD, decode(code, params["W_dec_FD"], sae))
    grad_BD = -2 * sae.aux_alpha / deviation * rest_BD
    grad_BK = sparse.dots(grad_BD, indices_BK, params["W_dec_FD"], sae)
    grad_BK = jnp.where(code.values > 0, jnp.minimum(grad_BK, 0), 0)
    start = _zeros(params)
    grad_b_enc_F = start["b_enc_F"].at[indices_BK].add(grad_BK)
    return jnp.square(rest_BD).sum() / deviation, start | {
        "W_enc_FD": sparse.add_outer(start["W_enc_FD"], grad_BK, indices_BK, x_BD, sae),
        "b_enc_F": grad_b_enc_F,
        "W_dec_FD": sparse.add_outer(start["W_dec_FD"], code.values, indices_BK, grad_BD, sae),
        "b_dec_D": jax.lax.psum(-(grad_b_enc_F @ params["W_enc_FD"]), "feature"),
    }


def _rest(error_BD: jax.Array, error_hat_BD: jax.Array) -> jax.Array:
    """Return e - s e_hat of the module's docstring, or e if e_hat is 0: [B, D]."""
    squares = jnp.maximum(jnp.square(error_hat_BD).sum(), jnp.finfo(error_hat_BD.dtype).tiny)
    return error_BD - jnp.clip((error_BD * error_hat_BD).sum() / squares, 0, 1) * error_hat_BD


def _zeros(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.zeros_like, params)


def _sizes(latents: int, sae: SaeConfig) -> list[int]:
    """Return the sizes for :func:`_few`, ascending from k_aux, at which no top-k is needed.

    At first they grow in steps of half of k_aux, because few dead latents are the usual case and the cost grows with
    the size. Later they grow by half, because each size is one more branch to compile. The largest size is a quarter
    of the latents, or ``encode_chunk``.
    """
    smallest = max(sae.k_aux // jax.lax.axis_size("feature"), 8)
    largest = sae.encode_chunk or latents // 4
    sizes: list[int] = []
    size = smallest
    while size <= largest:
        sizes.append(size)
        size += smallest // 2 if size < 3 * smallest else size // 2
    return sizes
