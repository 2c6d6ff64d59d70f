"""States and train steps of a grid: members with the same dictionary size share one state.

The state of a group has a leading axis G over its members.
"""

import dataclasses
import pathlib
import typing
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from revelio_jax.config import Config, SaeConfig, TrainConfig
from revelio_jax.sae import initial, sharding
from revelio_jax.training import checkpoints
from revelio_jax.training.checkpoints import RunIdentity
from revelio_jax.training.loader import RowStream
from revelio_jax.training.run import center
from revelio_jax.training.step import State, initial_state, state_shardings, update


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One autoencoder of a grid; ``stream`` is the index of its row stream."""

    config: Config
    folder: pathlib.Path
    latents: int
    stream: int
    identity: RunIdentity


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Members with the same dictionary size."""

    members: tuple[Member, ...]

    @property
    def sae(self) -> SaeConfig:
        """The autoencoder of the member with the largest k; the members differ only in k."""
        return max((member.config.sae for member in self.members), key=lambda sae: sae.k)

    @property
    def train(self) -> TrainConfig:
        """The training section of the first member; the members differ only in learning rate and seed."""
        return self.members[0].config.train


def make_groups(members: Sequence[Member], form: str) -> list[Group]:
    """Group members by dictionary size. With form ``map`` also by k, since a group computes its largest k."""

    def key(member: Member) -> tuple[int, int | None]:
        return member.latents, member.config.sae.k if form == "map" else None

    keys = dict.fromkeys(key(member) for member in members)
    return [Group(tuple(member for member in members if key(member) == each)) for each in keys]


def initial_states(groups: Sequence[Group], streams: Sequence[RowStream], mesh: jax.sharding.Mesh) -> list[State]:
    """Return the state of each group before the first step."""
    sae = groups[0].sae
    centerings = [center(sae, stream) for stream in streams]

    def state(member: Member) -> State:
        config, (mean_D, scale, b_dec_D, x_ND) = member.config, centerings[member.stream]
        params = initial.initial_params(config.sae, config.train.seed, member.latents, b_dec_D, x_ND, mesh)
        return initial_state(params, mean_D, scale, config.sae, config.train, mesh)

    return [_stack(group, map(state, group.members), mesh) for group in groups]


def restored_states(
    groups: Sequence[Group], step: int, streams: Sequence[RowStream], mesh: jax.sharding.Mesh
) -> list[State]:
    """Return the state of each group after ``step`` steps, from the checkpoints of its members."""
    d = streams[0].mixture.d

    def state(member: Member) -> State:
        config = member.config
        return checkpoints.restore(member.folder, step, member.latents, d, config.sae, config.train, mesh)

    return [_stack(group, map(state, group.members), mesh) for group in groups]


def member_states(group: Group, state: State, mesh: jax.sharding.Mesh) -> Iterator[tuple[Member, State]]:
    """Yield each member of a group with its own state."""
    take = jax.jit(
        lambda state, i: jax.tree.map(lambda array: array[i], state),
        out_shardings=state_shardings(group.sae, group.train, mesh),
    )
    for i, member in enumerate(group.members):
        yield member, take(state, i)


def make_grid_step(groups: Sequence[Group], mesh: jax.sharding.Mesh, form: str) -> jax.stages.Wrapped:
    """Return the compiled ``train_step(states, *batches) -> (states, metrics)``; the states are consumed.

    ``states`` has one state per group, ``batches`` the stored rows [B, D] of each stream. ``metrics`` has one
    dict per group, with an array [G] for each name. ``form`` is ``vmap`` or ``map``.
    """

    def group_step(group: Group, state: State, x_SBD: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        def member_step(
            state: State, stream: jax.Array, k: jax.Array, learning_rate: jax.Array
        ) -> tuple[State, dict[str, jax.Array]]:
            train = dataclasses.replace(group.train, learning_rate=learning_rate)
            return update(state, x_SBD[stream], k, group.sae, train, mesh)

        arguments: tuple[typing.Any, ...] = (
            state,
            np.array([member.stream for member in group.members], np.int32),
            np.array([member.config.sae.k for member in group.members], np.int32),
            np.array([member.config.train.learning_rate for member in group.members], np.float32),
        )
        if form == "vmap":
            return jax.vmap(member_step)(*arguments)
        return jax.lax.map(lambda member: member_step(*member), arguments)

    def train_step(states: list[State], *batches: jax.Array) -> tuple[list[State], list[dict[str, jax.Array]]]:
        x_SBD = jnp.stack([x_BD.astype(jnp.float32) for x_BD in batches])
        results = [group_step(group, state, x_SBD) for group, state in zip(groups, states, strict=True)]
        return [state for state, _ in results], [metrics for _, metrics in results]

    shardings = [_shardings(group, mesh) for group in groups]
    replicated = jax.NamedSharding(mesh, sharding.REPLICATED)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated))


def _stack(group: Group, states: Iterable[State], mesh: jax.sharding.Mesh) -> State:
    """Return the states of the members as the state of their group."""
    stack = jax.jit(
        lambda states: jax.tree.map(lambda *arrays: jnp.stack(arrays), *states),
        out_shardings=_shardings(group, mesh),
    )
    return stack(list(states))


def _shardings(group: Group, mesh: jax.sharding.Mesh) -> State:
    """Return the shardings of a group's state; every device has the whole leading axis."""
    return jax.tree.map(
        lambda place: jax.NamedSharding(mesh, P(None, *place.spec)),
        state_shardings(group.sae, group.train, mesh),
    )
