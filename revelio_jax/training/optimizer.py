"""Adam with the schedule of the run, clipped gradients and decoder rows of norm 1."""

import typing

import jax
import jax.numpy as jnp
import optax

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.sae import initial, sharding
from revelio_jax.sae.gradients import Gradients
from revelio_jax.sae.kernels import optimizer_rows

MATRICES = ("W_enc_FD", "W_dec_FD")

Params = dict[str, jax.Array]


def schedule(train: TrainConfig) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, constant, decay to 0 over the last ``decay_share``."""
    decay_steps = round(train.decay_share * train.steps)

    def rate(step: typing.Any) -> jax.Array:
        up = jnp.minimum(1.0, (step + 1) / max(train.warmup_steps, 1))
        down = jnp.minimum(1.0, (train.steps - step) / max(decay_steps, 1)) if decay_steps else 1.0
        if train.decay == "cosine":
            down = 0.5 - 0.5 * jnp.cos(jnp.pi * down)
        return train.learning_rate * up * down

    return rate


def make_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """Return Adam with the schedule of the run."""
    return optax.adam(schedule(train), eps=train.adam_eps, mu_dtype=train.first_moment_dtype)


def is_rounded(sae: SaeConfig) -> bool:
    """Return whether a state has ``rounded``. Automatic differentiation needs the float32 parameters instead."""
    return sae.matmul_dtype == "bfloat16" and sae.architecture in ("topk", "batch_topk")


def rounded(params: Params, sae: SaeConfig) -> Params | None:
    """Return both matrices in bfloat16, or None if products use float32."""
    return {name: params[name].astype(jnp.bfloat16) for name in MATRICES} if is_rounded(sae) else None


def apply(
    params: Params,
    opt_state: typing.Any,
    gradients: Gradients,
    sae: SaeConfig,
    train: TrainConfig,
    mesh: jax.sharding.Mesh,
) -> tuple[Params, Params | None, typing.Any, jax.Array]:
    """Return the parameters after a step, :func:`rounded` of them, the state of Adam, and the norm of the gradients.

    The part of the decoder's gradient along its unit rows is removed, so that a step preserves their norms up to second
    order; rows are then scaled to norm 1.
    """
    squares = dict(gradients.squares)
    # By Pythagoras, so that the gradients need not be read again.
    squares["W_dec_FD"] = jnp.maximum(squares["W_dec_FD"] - jnp.square(gradients.parallel_F), 0)
    norm = jnp.sqrt(sum(square.sum() for square in squares.values()))
    clipped = jnp.minimum(1, train.clip_norm / norm) if train.clip_norm else jnp.ones_like(norm)
    # If the gradients are not finite, zeros keep Adam's moments finite until the run stops. The condition also makes
    # every update wait for all gradients. Otherwise XLA copies both matrices, because an update could overwrite values
    # that a gradient still reads.
    scale = jnp.where(jnp.isfinite(norm), clipped, 0)
    if sae.products == "kernels":
        params, copies, opt_state = _with_kernels(params, opt_state, gradients, scale, sae, train, mesh)
        return params, copies, opt_state, norm
    params, opt_state = _plain(params, opt_state, gradients, scale, train)
    return params, rounded(params, sae), opt_state, norm


def _plain(
    params: Params, opt_state: typing.Any, gradients: Gradients, scale: jax.Array, train: TrainConfig
) -> tuple[Params, typing.Any]:
    grads = dict(gradients.by_param)
    orthogonal_FD = grads["W_dec_FD"] - gradients.parallel_F[:, None] * params["W_dec_FD"]
    # A CPU computes each moment in a loop of its own: write the difference once. A GPU updates all in one loop.
    grads["W_dec_FD"] = jax.lax.platform_dependent(
        orthogonal_FD, cpu=jax.lax.optimization_barrier, default=lambda grad_FD: grad_FD
    )
    grads = jax.tree.map(lambda grad: jnp.where(scale > 0, scale * grad, 0), grads)
    updates, opt_state = make_optimizer(train).update(grads, opt_state)
    params = typing.cast(Params, optax.apply_updates(params, updates))
    params["W_dec_FD"] = initial.unit_rows(params["W_dec_FD"])
    return params, opt_state


def _with_kernels(
    params: Params,
    opt_state: typing.Any,
    gradients: Gradients,
    scale: jax.Array,
    sae: SaeConfig,
    train: TrainConfig,
    mesh: jax.sharding.Mesh,
) -> tuple[Params, Params, typing.Any]:
    """Update each matrix in one pass, and the vectors with Optax."""
    adam_state, schedule_state = opt_state
    learning_rate, count = schedule(train)(schedule_state.count), adam_state.count + 1
    constants = optimizer_rows.Adam(eps=train.adam_eps)

    def local(
        arrays: tuple[jax.Array, ...], along_F: jax.Array | None, scale: jax.Array, rate: jax.Array, count: jax.Array
    ) -> optimizer_rows.Rows:
        W_FD, m_FD, v_FD, grad_FD = arrays
        return optimizer_rows.pallas(W_FD, m_FD, v_FD, grad_FD, along_F, scale, rate, count, constants)

    def rows(name: str) -> optimizer_rows.Rows:
        arrays = params[name], adam_state.mu[name], adam_state.nu[name], gradients.by_param[name]
        along_F = gradients.parallel_F if name == "W_dec_FD" else None
        matrix: typing.Any = sharding.params(sae.architecture)[name]
        specs = (matrix, None if along_F is None else sharding.LATENTS, *[sharding.REPLICATED] * 3)
        # The kernel updates its operands in place, which the check of axes does not know.
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=matrix, check_vma=False)
        return run(arrays, along_F, scale, jnp.asarray(learning_rate), count)

    matrices = {name: rows(name) for name in MATRICES}

    def vectors(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: array for name, array in tree.items() if name not in MATRICES}

    grads = jax.tree.map(lambda grad: jnp.where(scale > 0, scale * grad, 0), vectors(gradients.by_param))
    few = adam_state._replace(mu=vectors(adam_state.mu), nu=vectors(adam_state.nu)), schedule_state
    updates, few = typing.cast(tuple[Params, typing.Any], make_optimizer(train).update(grads, few))
    few_state, schedule_state = few
    few_params = typing.cast(Params, optax.apply_updates(vectors(params), updates))
    opt_state = (
        few_state._replace(
            mu=few_state.mu | {name: new.m_FD for name, new in matrices.items()},
            nu=few_state.nu | {name: new.v_FD for name, new in matrices.items()},
        ),
        schedule_state,
    )
    copies = {name: new.rounded_FD for name, new in matrices.items()}
    params = few_params | {name: new.W_FD for name, new in matrices.items()}
    return params, copies, opt_state
