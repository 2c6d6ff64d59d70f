"""One training step as a function of the state and a batch."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.sae import forms, sharding
from revelio_jax.sae.gradients import Gradients, batch_gradients
from revelio_jax.training import optimizer

THRESHOLD_DECAY = 0.99  # of the moving average that is the threshold of batch_topk at inference


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The complete state of a run, as one pytree.

    ``step`` counts finished steps, which is also the position in the data. ``rows_since_fired_F`` counts the
    rows since a latent was above ``dead_threshold``; it saturates at ``dead_after_rows`` plus one batch.
    ``threshold`` is the moving average of the smallest value that batch_topk keeps. ``mean_D`` and ``scale``
    are the normalization (x - mean) / scale, constant over the run. ``ema`` is the moving average of
    ``params``, or None if config.train.ema is None. ``rounded`` has both matrices in bfloat16 for products, or is
    None if they use float32; writing it costs an update less than rounding in every product. It follows from
    ``params``, so that checkpoints do without it.
    """

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: typing.Any
    ema: dict[str, jax.Array] | None
    rows_since_fired_F: jax.Array
    threshold: jax.Array
    mean_D: jax.Array
    scale: jax.Array
    rounded: dict[str, jax.Array] | None

    @property
    def best_params(self) -> dict[str, jax.Array]:
        """The parameters to evaluate and export: the moving average if config.train.ema is set."""
        return self.params if self.ema is None else self.ema


def annealed_k(sae: SaeConfig, k: jax.Array | int, step: jax.Array) -> jax.Array | int:
    """Return the k of a step, which falls from ``k_start`` to ``k``. It is traced, so a new k does not recompile."""
    if not (sae.k_start and sae.k_anneal_steps):
        return k
    progress = jnp.minimum(1.0, step / sae.k_anneal_steps)
    return jnp.round(sae.k_start + (k - sae.k_start) * progress).astype(jnp.int32)


def initial_state(
    params: dict[str, jax.Array],
    mean_D: np.ndarray,
    scale: float,
    sae: SaeConfig,
    train: TrainConfig,
    mesh: jax.sharding.Mesh,
) -> State:
    """Return the state before the first step, on the devices of ``mesh``. ``params`` are consumed."""
    make = jax.jit(
        lambda params, mean_D, scale: _state(params, mean_D, scale, forms.resolved(sae, 1, mesh), train),
        out_shardings=state_shardings(sae, train, mesh),
        donate_argnums=0,
    )
    return make(params, np.asarray(mean_D, np.float32), np.float32(scale))


def abstract_state(latents: int, d: int, sae: SaeConfig, train: TrainConfig, mesh: jax.sharding.Mesh) -> State:
    """Return the shapes, dtypes and shardings of a state as a State of ShapeDtypeStructs."""

    def make() -> State:
        matrix_FD, of_F, of_D = jnp.zeros((latents, d)), jnp.zeros(latents), jnp.zeros(d)
        params = {"W_enc_FD": matrix_FD, "b_enc_F": of_F, "W_dec_FD": matrix_FD, "b_dec_D": of_D}
        params |= {"log_threshold_F": of_F} if sae.architecture == "jumprelu" else {}
        return _state(params, of_D, jnp.zeros(()), forms.resolved(sae, latents, mesh), train)

    return jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
        jax.eval_shape(make),
        state_shardings(sae, train, mesh),
    )


def state_shardings(sae: SaeConfig, train: TrainConfig, mesh: jax.sharding.Mesh) -> State:
    """Return the NamedSharding of every array of a state."""
    params = sharding.params(sae.architecture)
    sae = forms.resolved(sae, 1, mesh)
    specs: dict[str, typing.Any] = {
        "step": sharding.REPLICATED,
        "params": params,
        "opt_state": sharding.optimizer_specs(optimizer.make_optimizer(train), params),
        "ema": params if train.ema is not None else None,
        "rows_since_fired_F": sharding.LATENTS,
        "threshold": sharding.REPLICATED,
        "mean_D": sharding.REPLICATED,
        "scale": sharding.REPLICATED,
        "rounded": {name: params[name] for name in optimizer.MATRICES} if optimizer.is_rounded(sae) else None,
    }
    return sharding.named_shardings(mesh, State(**specs))


def gradients(
    params: dict[str, jax.Array],
    dead_F: jax.Array,
    x_BD: jax.Array,
    k: jax.Array | int,
    sae: SaeConfig,
    mesh: jax.sharding.Mesh,
    rounded: dict[str, jax.Array] | None = None,
) -> tuple[Gradients, jax.Array, dict[str, jax.Array]]:
    """Return gradients on normalized rows x_BD, the number of rows on which each latent fired [F], and metrics.

    Products read the matrices ``rounded`` instead of those in ``params`` if they are given.
    """
    sae = forms.resolved(sae, len(dead_F), mesh)

    def local(
        params: dict[str, jax.Array],
        rounded: dict[str, jax.Array] | None,
        dead_F: jax.Array,
        k: jax.Array,
        x_BD: jax.Array,
    ) -> tuple[Gradients, jax.Array, dict[str, jax.Array]]:
        return batch_gradients(params, rounded, x_BD, k, dead_F, sae)

    specs: dict[str, typing.Any] = sharding.params(sae.architecture)
    by_row: dict[str, typing.Any] = {name: P(*spec[:1]) for name, spec in specs.items()}
    latents: typing.Any = sharding.LATENTS
    # With one device along ``data``, rows are replicated and need no gathering.
    rows = sharding.BATCH if mesh.shape["data"] > 1 else sharding.REPLICATED
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, rounded and {name: specs[name] for name in rounded}, latents, P(), rows),
        out_specs=(Gradients(specs, by_row, latents), latents, sharding.REPLICATED),
        check_vma=sae.products != "kernels",  # Pallas does not know which axes its operands vary over
    )(params, rounded, dead_F, jnp.asarray(k, jnp.int32), x_BD)


def update(
    state: State,
    x_BD: jax.Array,
    k: jax.Array | int,
    sae: SaeConfig,
    train: TrainConfig,
    mesh: jax.sharding.Mesh,
) -> tuple[State, dict[str, jax.Array]]:
    """Return the state after one more step, and metrics.

    x_BD are stored rows. ``k`` is the final k of annealing. ``k``, at most sae.k, and train.learning_rate may
    be traced.
    """
    dead_F = state.rows_since_fired_F >= sae.dead_after_rows
    x_BD = (x_BD - state.mean_D) / state.scale
    k = annealed_k(sae, k, state.step)
    grads, fired_F, metrics = gradients(state.params, dead_F, x_BD, k, sae, mesh, state.rounded)
    params, rounded, opt_state, grad_norm = optimizer.apply(
        state.params, state.opt_state, grads, forms.resolved(sae, len(dead_F), mesh), train, mesh
    )
    # Saturates, because int32 would overflow in a long run.
    since_F = jnp.minimum(state.rows_since_fired_F, sae.dead_after_rows) + len(x_BD)
    smallest = metrics.pop("smallest")
    average = jnp.where(state.threshold > 0, state.threshold, smallest)
    average += (1 - THRESHOLD_DECAY) * (smallest - average)
    metrics |= {
        "dead_fraction": dead_F.mean(),
        "lr": jnp.asarray(optimizer.schedule(train)(state.step)),
        "grad_norm": grad_norm,
    }
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=None if state.ema is None else optax.incremental_update(params, state.ema, 1 - (train.ema or 0.0)),
        rows_since_fired_F=jnp.where(fired_F > 0, 0, since_F),
        threshold=jnp.where(jnp.isfinite(smallest), average, state.threshold),
        rounded=rounded,
    )
    return state, metrics


def make_train_step(sae: SaeConfig, train: TrainConfig, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """Return the compiled ``train_step(state, x_BD) -> (state, metrics)``, which consumes its state.

    x_BD are stored rows; metrics are scalars on the device.
    """

    def train_step(state: State, x_BD: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        return update(state, x_BD, sae.k, sae, train, mesh)

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings(sae, train, mesh), None))


def _state(
    params: dict[str, jax.Array], mean_D: jax.Array, scale: jax.Array, sae: SaeConfig, train: TrainConfig
) -> State:
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.make_optimizer(train).init(params),
        ema=jax.tree.map(jnp.copy, params) if train.ema is not None else None,
        rows_since_fired_F=jnp.zeros(params["b_enc_F"].shape, jnp.int32),
        threshold=jnp.zeros(()),
        mean_D=mean_D,
        scale=scale,
        rounded=optimizer.rounded(params, sae),
    )
