"""One step of training, as a function of the state and a batch."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

from revelio_jax import sharding
from revelio_jax.config import Sae, Train
from revelio_jax.sae import TopKSae, initial, losses


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that a run needs to go on, one pytree.

    ``step`` counts finished steps, and is the position in the data. ``rows_since_fired_F`` counts, up
    to ``dead_after_rows`` and a batch, the rows since a latent was above ``dead_threshold``.
    ``mean_D`` and ``scale`` are the normalisation (x - mean) / scale, fixed for the run.
    """

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: typing.Any
    rows_since_fired_F: jax.Array
    mean_D: jax.Array
    scale: jax.Array


def schedule(train: Train) -> optax.Schedule:
    """Linear warm-up, constant, and linear decay to 0 over the last ``decay_share`` of the steps."""
    decay_steps = round(train.decay_share * train.steps)

    def rate(step):
        up = jnp.minimum(1.0, (step + 1) / max(train.warmup_steps, 1))
        down = jnp.minimum(1.0, (train.steps - step) / max(decay_steps, 1)) if decay_steps else 1.0
        return train.learning_rate * up * down

    return rate


def make_optimiser(train: Train) -> optax.GradientTransformation:
    return optax.adam(schedule(train), eps=train.adam_eps)


def initial_state(
    params: dict[str, jax.Array],
    mean_D: np.ndarray,
    scale: float,
    optimiser: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> State:
    """The state before the first step, on its devices. ``params`` are consumed."""

    def make(params, mean_D, scale):
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimiser.init(params),
            rows_since_fired_F=jnp.zeros(params["b_enc_F"].shape, jnp.int32),
            mean_D=mean_D,
            scale=scale,
        )

    make = jax.jit(make, out_shardings=state_shardings(optimiser, mesh), donate_argnums=0)
    return make(params, jnp.asarray(mean_D, jnp.float32), jnp.asarray(scale, jnp.float32))


def abstract_state(
    latents: int, d: int, optimiser: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> State:
    """Shapes, dtypes and shardings of a state, without its values."""

    def make():
        matrix_FD, of_F, of_D = jnp.zeros((latents, d)), jnp.zeros(latents), jnp.zeros(d)
        params = {"W_enc_FD": matrix_FD, "b_enc_F": of_F, "W_dec_FD": matrix_FD, "b_dec_D": of_D}
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimiser.init(params),
            rows_since_fired_F=of_F.astype(jnp.int32),
            mean_D=of_D,
            scale=jnp.zeros(()),
        )

    return jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
        jax.eval_shape(make),
        state_shardings(optimiser, mesh),
    )


def state_shardings(optimiser: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> State:
    """NamedShardings in the form of a state."""
    specs = State(
        step=sharding.REPLICATED,
        params=sharding.PARAMS,
        opt_state=sharding.like_params(optimiser),
        rows_since_fired_F=sharding.LATENTS,
        mean_D=sharding.REPLICATED,
        scale=sharding.REPLICATED,
    )
    return sharding.named(mesh, specs)


def gradients(
    params: dict[str, jax.Array], dead_F: jax.Array, x_BD: jax.Array, sae: Sae, mesh: jax.sharding.Mesh
) -> tuple[dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
    """Gradients of the loss on normalised rows x_BD, which latents fired [F], and metrics."""

    def local(params, dead_F, x_BD):
        deviation = losses.squared_deviation(x_BD)

        def loss(params):
            model = TopKSae(**params, k=sae.k)
            values_BK, indices_BK = model.encode(x_BD)
            error_BD = x_BD - model.decode(values_BK, indices_BK)
            return losses.normalised_error(error_BD, deviation), (values_BK, indices_BK, error_BD)

        (fvu, (values_BK, indices_BK, error_BD)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        aux_loss, grads = losses.add_aux_k(
            params, grads, x_BD, error_BD, deviation, dead_F, sae.k_aux, sae.aux_alpha
        )
        fires_BK = values_BK > sae.dead_threshold  # a slot that was selected with value 0 does not fire
        fires_F = jnp.zeros_like(fires_BK, int, dead_F.shape).at[indices_BK].max(fires_BK.astype(int))
        rows = jax.lax.psum(len(x_BD), "data")
        metrics = {
            "loss": fvu + sae.aux_alpha * aux_loss,
            "fvu": fvu,
            "l0": jax.lax.psum((values_BK > 0).sum(), sharding.AXES) / rows,
            "aux_loss": aux_loss,
        }
        return grads, jax.lax.pmax(fires_F, "data") > 0, metrics

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(sharding.PARAMS, sharding.LATENTS, sharding.BATCH),
        out_specs=(sharding.PARAMS, sharding.LATENTS, sharding.REPLICATED),
    )(params, dead_F, x_BD)


def remove_parallel(grad_FD: jax.Array, W_FD: jax.Array) -> jax.Array:
    """The part of each row's gradient that is orthogonal to the (unit) row, along which norms stay."""
    return grad_FD - (grad_FD * W_FD).sum(1, keepdims=True) * W_FD


def make_train_step(sae: Sae, train: Train, mesh: jax.sharding.Mesh) -> typing.Callable:
    """``train_step(state, x_BD) -> (state, metrics)``, compiled; the state passed in is consumed.

    x_BD are rows as stored; metrics are scalars on the device.
    """
    optimiser, rate = make_optimiser(train), schedule(train)

    def train_step(state: State, x_BD: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        dead_F = state.rows_since_fired_F >= sae.dead_after_rows
        x_BD = (x_BD - state.mean_D) / state.scale
        grads, fires_F, metrics = gradients(state.params, dead_F, x_BD, sae, mesh)
        grads["W_dec_FD"] = remove_parallel(grads["W_dec_FD"], state.params["W_dec_FD"])
        updates, opt_state = optimiser.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        params["W_dec_FD"] = initial.unit_rows(params["W_dec_FD"])
        # Saturates, since int32 would overflow in a long run.
        since_F = jnp.minimum(state.rows_since_fired_F, sae.dead_after_rows) + len(x_BD)
        metrics |= {
            "dead_fraction": dead_F.mean(),
            "lr": jnp.asarray(rate(state.step)),
            "grad_norm": optax.tree_utils.tree_norm(grads),
        }
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            rows_since_fired_F=jnp.where(fires_F, 0, since_F),
        )
        return state, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings(optimiser, mesh), None))
