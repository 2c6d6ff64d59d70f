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

import contextlib
import contextvars
import dataclasses
import functools
import typing
from collections.abc import Generator

import jax
import jax.numpy as jnp

from revelio_jax.config import SaeConfig
from revelio_jax.sae import forms, sharding, topk
from revelio_jax.sae.code import Code
from revelio_jax.sae.module import largest
from revelio_jax.sae.sparse import product

T = typing.TypeVar("T")

SCOPE = "aux_k"  # names the conditional over the branches in compiled programs and profiles
MATRICES = ("W_enc_FD", "b_enc_F", "W_dec_FD")  # with an axis of latents

LossAndGradients = tuple[jax.Array, dict[str, jax.Array]]

_outer_only: contextvars.ContextVar[bool] = contextvars.ContextVar("outer_only", default=False)


@contextlib.contextmanager
def outer_branches() -> Generator[None]:
    """Trace :func:`aux_k` with its first and last branch only, for a step that is compiled but not run."""
    token = _outer_only.set(True)
    try:
        yield
    finally:
        _outer_only.reset(token)


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

    x_BD and error_BD are the rows that count: those of all devices, or those of this device, and then the caller sums
    loss and gradients over ``data``. The gradients have the structure of ``params``. There are three
    kinds of branches. Without dead latents, a branch returns zeros. A few dead latents, the usual case, are gathered
    into one of several fixed sizes and multiplied densely, because k_aux is often close to their number. If there are
    many, top-k selects from them.
    """
    zeros = _zeros(params, x_BD)
    zero = _zeros(deviation, x_BD)
    if not sae.k_aux:
        return zero, zeros
    inputs = _Inputs(params, x_BD, error_BD, deviation, dead_F, sae)
    sizes = [] if _outer_only.get() else _sizes(len(dead_F), sae)
    branches = [
        lambda: (zero, zeros),
        *(functools.partial(_few, inputs, size) for size in sizes),
        functools.partial(_many, inputs),
    ]
    # All devices must take the same branch, because branches contain collectives.
    most_dead = jax.lax.pmax(dead_F.sum(), "feature")
    branch = jnp.searchsorted(jnp.array([0, *sizes]), _largest_of_grid(most_dead))
    with jax.named_scope(SCOPE):
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
    params, dead_F = inputs.params, inputs.dead_F
    indices_C = jnp.nonzero(dead_F, size=size, fill_value=len(dead_F))[0]
    gathered = {name: params[name].at[indices_C].get(mode="fill", fill_value=0) for name in MATRICES}
    loss, grads = _all(inputs, gathered)
    start = _zeros({name: params[name] for name in MATRICES}, inputs.x_BD)
    scattered = {name: start[name].at[indices_C].set(grads[name], mode="drop") for name in MATRICES}
    return loss, grads | scattered


def _all(inputs: _Inputs, latents: dict[str, jax.Array]) -> LossAndGradients:
    """Return loss and gradients from the latents with the given rows of MATRICES, by products with all of them.

    If values of a row are equal to the k_aux-th largest, all of them are kept.
    """
    params, x_BD, error_BD, deviation, _, sae = inputs
    W_enc_CD, b_enc_C, W_dec_CD = (latents[name] for name in MATRICES)
    x_BD -= params["b_dec_D"]
    z_BC = jax.nn.relu(product(x_BD, W_enc_CD.T, sae.matmul_dtype) + b_enc_C)
    if len(b_enc_C) * jax.lax.axis_size("feature") > sae.k_aux:
        sum_over_devices = functools.partial(jax.lax.psum, axis_name="feature")
        z_BC = jnp.where(z_BC >= topk.kth_largest(z_BC, sae.k_aux, 1, sum_over_devices), z_BC, 0)
    rest_BD = _rest(error_BD, Code(z_BC).decode(W_dec_CD, sae))
    grad_BD = -2 * sae.aux_alpha / deviation * rest_BD
    grad_z_BC = jnp.where(z_BC > 0, jnp.minimum(product(grad_BD, W_dec_CD.T, sae.matmul_dtype), 0), 0)
    grad_b_enc_C = grad_z_BC.sum(0)
    return jnp.square(rest_BD).sum() / deviation, {
        "W_enc_FD": product(grad_z_BC.T, x_BD, sae.matmul_dtype),
        "b_enc_F": grad_b_enc_C,
        "W_dec_FD": product(z_BC.T, grad_BD, sae.matmul_dtype),
        "b_dec_D": jax.lax.psum(-(grad_b_enc_C @ W_enc_CD), "feature"),
    }


def _many(inputs: _Inputs) -> LossAndGradients:
    """Return loss and gradients from k_aux slots of each row. The cost hardly depends on the number of dead latents."""
    sae, params = inputs.sae, inputs.params
    if sae.encode_chunk:
        return _selected(inputs, sae)
    if jax.lax.axis_size("feature") > 1:  # top-k would exchange k_aux candidates of each device and row
        masked = params | {"b_enc_F": jnp.where(inputs.dead_F, params["b_enc_F"], -jnp.inf)}
        by_matrices = functools.partial(_all, inputs, masked)
    else:
        dense = sae if forms.is_dense(sae) else dataclasses.replace(sae, products="dense")
        by_matrices = functools.partial(_selected, inputs, dense)
    if forms.is_dense(sae):
        return by_matrices()
    # k_aux is so large that whole products win on every accelerator.
    return jax.lax.platform_dependent(cpu=functools.partial(_selected, inputs, sae), default=by_matrices)


def _selected(inputs: _Inputs, sae: SaeConfig) -> LossAndGradients:
    params, x_BD, error_BD, deviation, dead_F, _ = inputs
    x_BD -= params["b_dec_D"]
    b_enc_F = jnp.where(dead_F, params["b_enc_F"], -jnp.inf)
    (code,) = largest(x_BD, params["W_enc_FD"], b_enc_F, [sae.k_aux], sae.k_aux, sae)
    rest_BD = _rest(error_BD, code.decode(params["W_dec_FD"], sae))
    grad_BD = -2 * sae.aux_alpha / deviation * rest_BD
    dots = code.dots(grad_BD, params["W_dec_FD"], sae)
    grad_code = dataclasses.replace(code, values=jnp.where(code.values > 0, jnp.minimum(dots, 0), 0))
    start = _zeros(params, x_BD)
    grad_b_enc_F = grad_code.sums(len(dead_F), sae)
    return jnp.square(rest_BD).sum() / deviation, start | {
        "W_enc_FD": grad_code.add_outer(start["W_enc_FD"], x_BD, sae).grad_FD,
        "b_enc_F": grad_b_enc_F,
        "W_dec_FD": code.add_outer(start["W_dec_FD"], grad_BD, sae).grad_FD,
        "b_dec_D": jax.lax.psum(-(grad_b_enc_F @ params["W_enc_FD"]), "feature"),
    }


def _rest(error_BD: jax.Array, error_hat_BD: jax.Array) -> jax.Array:
    """Return e - s e_hat of the module's docstring, or e if e_hat is 0: [B, D]."""
    both, squares = (error_BD * error_hat_BD).sum(), jnp.square(error_hat_BD).sum()
    both, squares = sharding.sum_over_rows((both, squares), error_BD)
    return error_BD - jnp.clip(both / jnp.maximum(squares, jnp.finfo(squares.dtype).tiny), 0, 1) * error_hat_BD


def _zeros(params: T, x_BD: jax.Array) -> T:
    """Return float32 zeros for every array of a tree, varying over the mesh like results for the rows x_BD."""
    return jax.tree.map(lambda param: sharding.varying_like(jnp.zeros_like(param, jnp.float32), x_BD), params)


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
