"""Train a grid of autoencoders side by side: every layer, k, dictionary size and learning rate at once.

    python -m revelio_jax.grid --config configs/mini_sd.py --grid sae.k=10,20 \
        --grid train.learning_rate=1e-3,4e-4
    python -m revelio_jax.evaluate --config runs/mini_sd/k=10,learning_rate=0.001/config.json

Every ``--grid FIELD=VALUE,VALUE`` multiplies the members; FIELD is one of FIELDS. A member is an ordinary
run in a folder of config.run that is named after its values, with config.json, metrics.jsonl and
checkpoints/: every other command takes its config.json as ``--config``, and train may go on with it alone.
``--config.train.resume=True`` goes on with the grid where all members have a checkpoint.

One compiled program takes a step of all: by ``jax.vmap``, or (``--form map``, the default on a CPU, where
batched gathers and scatters are slow) one member after another, which saves reading and compiling only.
The store is read once for every stream of rows, of which there is one for each store, site and seed that
the members have; each has buffers of its own in memory. All sites must have the same width. A grid over
timesteps is one over extract.store, with a store for each: rows of one timestep are not picked out of a
store that mixes them.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import sys
import time
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from revelio_jax.cli import parse
from revelio_jax.config import Config, SaeConfig, TrainConfig, resolve, schema
from revelio_jax.errors import InputError, reported
from revelio_jax.sae import initial, sharding
from revelio_jax.train import centre, describe, dictionary_size, make_order, open_run, resumed_step
from revelio_jax.training import checkpoints, coverage, loader, metrics, nonfinite_report, processes, trackers
from revelio_jax.training import step as training
from revelio_jax.training.mixture import Mixture
from revelio_jax.training.step import State

FIELDS = (
    "sae.k", "sae.expansion", "sae.latents",
    "train.learning_rate", "train.seed", "data.site", "extract.store",
)  # fmt: skip
FORMS = ("auto", "vmap", "map")


class RowStream(typing.NamedTuple):
    """Rows that members share, and the order in which they come."""

    mixture: Mixture
    order: loader.Order


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One autoencoder of the grid. ``stream`` is the number of its stream."""

    config: Config
    run: pathlib.Path
    latents: int
    stream: int
    facts: dict[str, typing.Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Members with the same number of latents, whose states are one with a leading axis G."""

    members: tuple[Member, ...]

    @property
    def sae(self) -> SaeConfig:
        """What they have in common, with the largest k."""
        return max((member.config.sae for member in self.members), key=lambda sae: sae.k)

    @property
    def train(self) -> TrainConfig:
        return self.members[0].config.train


def train(config: Config, grid: Sequence[str], form: str = "auto") -> None:
    """Train all members up to config.train.steps. Raises InputError before anything is written."""
    options = config.train
    if form not in FORMS:
        raise InputError(f"--form is {form!r}; allowed: {', '.join(FORMS)}")

    # Members, mesh and data.
    members, streams = open_members(configs(config, grid))
    start = common_step(members, options.resume)
    if start >= options.steps:
        print(f"{config.run} is finished: all have {start} of {options.steps} steps, nothing is left to do")
        return
    trackers.check(config.logging)
    if config.logging.wandb:
        raise InputError(f"config.logging.wandb is {config.logging.wandb!r}; a grid has TensorBoard only")
    for member in members:  # every size must fit it
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.feature, options.batch_size, member.latents)
    lanes = sharding.own_lanes(sharding.processes(mesh), config.data.lanes, jax.process_index())

    # States: restored, or initial.
    form = form if form != "auto" else "map" if mesh.devices.flat[0].platform == "cpu" else "vmap"
    groups = make_groups(members, form)
    states = restored(groups, start, streams, mesh) if start else initial_states(groups, streams, mesh)
    train_step = make_train_step(groups, mesh, form)
    print(f"{len(members)} autoencoders side by side, from {len(streams)} streams of rows; of the first:")
    print(describe(members[0].config, *streams[members[0].stream], members[0].latents))

    # Loop, as in train.py.
    for member in members:
        member.run.mkdir(parents=True, exist_ok=True)
        if processes.is_first():
            (member.run / "config.json").write_text(member.config.to_json())
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        # At least 2 are kept: a crash may leave some members one checkpoint ahead of others.
        managers = {m: enter(checkpoints.manager(m.run, max(options.keep, 2))) for m in members}
        rows = [
            enter(contextlib.closing(loader.batches(stream.mixture, stream.order, start, lanes))) for stream in streams
        ]
        logs = {
            m: enter(
                metrics.Log(
                    m.run / "metrics.jsonl",
                    start,
                    m.config.train,
                    m.config.logging.every,
                    trackers.sinks(m.run, start, m.config),
                    bar=False,
                )
            )
            for m in members
        }
        bar = enter(
            tqdm(
                total=options.steps,
                initial=start,
                unit="step",
                dynamic_ncols=True,
                disable=not processes.is_first(),
            )
        )
        asked_to_stop = enter(processes.sigterm())

        def log(step, measured, shuffled, waited_s):
            """Wait for a step, and log it for every member."""
            measured = jax.device_get(measured)
            for group, of_group in zip(groups, measured, strict=True):
                for i, member in enumerate(group.members):
                    of_member = {name: values[i] for name, values in of_group.items()}
                    with nonfinite_report.explained(member.run, *streams[member.stream]):
                        line = logs[member].add(step, of_member | shuffled[member.stream], waited_s)
                    fvus[member].append(line["fvu"])
            bar.update()
            last = [values[-1] for values in fvus.values()]
            bar.set_postfix_str(f"FVU {min(last):.4f} to {max(last):.4f}")

        before, fvus = None, {member: [] for member in members}
        for step in range(start + 1, options.steps + 1):
            asked = time.perf_counter()
            batches = tuple(sharding.put_batch(mesh, next(of_stream)) for of_stream in rows)
            waited_s = time.perf_counter() - asked
            states, measured = train_step(states, batches)
            shuffled = [{}] * len(streams)
            if metrics.is_logged(step, config.logging.every, options.steps):  # while the device works
                shuffled = [coverage.measure(*stream, step - 1) for stream in streams]
            if before:
                log(*before)
            before = step, measured, shuffled, waited_s
            stop = asked_to_stop(step)
            if step % options.checkpoint_every == 0 or step == options.steps or stop:
                log(*before)
                save(managers, groups, states, step, fvus, mesh)
                before, fvus = None, {member: [] for member in members}
            if stop:
                break
    if step < options.steps:
        print(f"{config.run} was asked to stop; step {step} is saved, --config.train.resume=True goes on")
        raise SystemExit(processes.STOPPED)
    print(f"{config.run} is finished: {options.steps} steps; next, for each of its folders:")
    print(f"  python -m revelio_jax.evaluate --config {members[0].run / 'config.json'}")


def configs(config: Config, grid: Sequence[str]) -> list[Config]:
    """The members' configs, the last field changing fastest. Raises InputError."""
    if not grid:
        raise InputError("--grid is missing; it names a field and values, as --grid sae.k=16,32")
    axes = [_axis(config, given) for given in grid]
    names = [axis[0][0] for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--grid has {name} twice; give all its values at once")
    if "sae.expansion" in names and ("sae.latents" in names or config.sae.latents):
        raise InputError("--grid sae.expansion has no effect where sae.latents is given; set that to None")
    if "extract.store" in names and config.data.stores:
        raise InputError("--grid extract.store has no effect where config.data.stores is given")
    if not config.run:
        raise InputError("config.run is empty; it names the folder of the grid, as runs/mini_sd")
    members = []
    for point in itertools.product(*axes):
        values = dataclasses.asdict(config)
        for name, value in point:
            section, key = name.split(".")
            values[section][key] = value
        label = ",".join(f"{name.split('.')[1]}={_short(value)}" for name, value in point)
        values["run"] = str(pathlib.Path(config.run) / label)
        members.append(resolve(values))
    runs = [member.run for member in members]
    for run in runs:
        if runs.count(run) > 1:
            raise InputError(f"--grid has two members for the folder {run}; values must differ in their names")
    return members


def _axis(config: Config, given: str) -> list[tuple[str, typing.Any]]:
    """Field and value of every value of ``FIELD=VALUE,VALUE``."""
    name, _, values = given.partition("=")
    if name not in FIELDS:
        raise InputError(
            f"--grid {given}: {name or 'nothing'} is not a field that a grid can vary; allowed: {', '.join(FIELDS)}"
        )
    section, key = name.split(".")
    kind = schema.base_type(schema.declared(name)[0])
    axis = []
    for value in values.split(","):
        try:
            axis.append((name, kind(value) if value else None))
        except ValueError:
            axis.append((name, None))
        if axis[-1][1] is None:
            raise InputError(f"--grid {given}: {name} is {value!r}; each must be of type {kind.__name__}")
    return axis


def _short(value) -> str:
    """A value in a folder's name; of a location its last part."""
    return pathlib.PurePosixPath(value).name if isinstance(value, str) else str(value)


def open_members(configs: Sequence[Config]) -> tuple[list[Member], list[RowStream]]:
    """Members, and the streams that they share. Raises InputError."""
    streams, keys, members = [], {}, []
    for config in configs:
        key = config.extract.store, config.data.site, config.train.seed
        if key not in keys:
            keys[key] = len(streams)
            _, mixture = open_run(config)
            streams.append(RowStream(mixture, make_order(config, mixture)))
        run, mixture = pathlib.Path(config.run), streams[keys[key]].mixture
        first = streams[0].mixture
        if mixture.d != first.d:
            raise InputError(
                f"--grid: {mixture.name} of {mixture.stores[0].location} has width {mixture.d}, but "
                f"{first.name} of {first.stores[0].location} has {first.d}; all must have the same"
            )
        facts = checkpoints.identity(config, mixture.fingerprint, mixture.name)
        members.append(Member(config, run, dictionary_size(config, mixture.d), keys[key], facts))
    return members, streams


def common_step(members: Sequence[Member], resume: bool) -> int:
    """The newest step of which all members have a checkpoint, 0 where none has any. Raises InputError."""
    newest = {member.run: resumed_step(member.run, resume, member.facts) for member in members}
    step = checkpoints.newest(*newest)
    if not step and any(newest.values()):
        raise InputError(
            "--grid: there is no step of which all members have a checkpoint; the newest are "
            + ", ".join(f"{run.name}: {step or 'none'}" for run, step in newest.items())
            + "; give the values that the grid began with, or remove folders"
        )
    return step


def make_groups(members: Sequence[Member], form: str) -> list[Group]:
    """Members whose states stack. With ``map`` also of one k, since all get the slots of the largest."""

    def key(member):
        return member.latents, member.config.sae.k if form == "map" else None

    return [Group(tuple(m for m in members if key(m) == one)) for one in dict.fromkeys(map(key, members))]


def initial_states(groups: Sequence[Group], streams: Sequence[RowStream], mesh: jax.sharding.Mesh) -> list[State]:
    """The states before the first step, one for each group."""
    sae = groups[0].sae
    centres = [centre(sae, *stream) for stream in streams]

    def state(member):
        config, (mean_D, scale, b_dec_D, x_ND) = member.config, centres[member.stream]
        params = initial.initial_params(config.sae, config.train.seed, member.latents, b_dec_D, x_ND, mesh)
        return training.initial_state(params, mean_D, scale, config.sae, config.train, mesh)

    return [stacked(group, map(state, group.members), mesh) for group in groups]


def restored(groups: Sequence[Group], step: int, streams: Sequence[RowStream], mesh: jax.sharding.Mesh) -> list[State]:
    """The states after ``step`` steps, one for each group."""
    d = streams[0].mixture.d

    def state(member):
        config = member.config
        return checkpoints.restore(member.run, step, member.latents, d, config.sae, config.train, mesh)

    return [stacked(group, map(state, group.members), mesh) for group in groups]


def stacked(group: Group, states: typing.Iterable[State], mesh: jax.sharding.Mesh) -> State:
    """The states as one, with a leading axis."""
    stack = jax.jit(
        lambda states: jax.tree.map(lambda *arrays: jnp.stack(arrays), *states),
        out_shardings=_shardings(group, mesh),
    )
    return stack(list(states))


def make_train_step(groups: Sequence[Group], mesh: jax.sharding.Mesh, form: str) -> Callable:
    """``train_step(states, batches) -> (states, metrics)``, compiled; the states passed in are consumed.

    ``states`` has a state for each group, ``batches`` the rows [B, D] of each stream as stored; metrics
    are a dict for each group, with an array [G] a name.
    """

    def of_group(group: Group, state: State, x_SBD: jax.Array):
        def of_member(state, stream, k, learning_rate):
            train = dataclasses.replace(group.train, learning_rate=learning_rate)
            return training.update(state, x_SBD[stream], k, group.sae, train, mesh)

        arguments = (
            state,
            np.array([member.stream for member in group.members], np.int32),
            np.array([member.config.sae.k for member in group.members], np.int32),
            np.array([member.config.train.learning_rate for member in group.members], np.float32),
        )
        if form == "vmap":
            return jax.vmap(of_member)(*arguments)
        return jax.lax.map(lambda each: of_member(*each), arguments)

    def train_step(states, batches):
        x_SBD = jnp.stack([x_BD.astype(jnp.float32) for x_BD in batches])
        done = [of_group(group, state, x_SBD) for group, state in zip(groups, states, strict=True)]
        return [state for state, _ in done], [measured for _, measured in done]

    shardings = [_shardings(group, mesh) for group in groups]
    whole = jax.NamedSharding(mesh, sharding.REPLICATED)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, whole))


def save(
    managers: dict[Member, typing.Any],
    groups: Sequence[Group],
    states: Sequence[State],
    step: int,
    fvus: dict[Member, list[float]],
    mesh: jax.sharding.Mesh,
) -> None:
    """Begin to save every member's state as an ordinary checkpoint."""
    for manager in managers.values():  # so that no member is ever two checkpoints ahead of another
        manager.wait_until_finished()
    for group, state in zip(groups, states, strict=True):
        take = jax.jit(
            lambda state, i: jax.tree.map(lambda array: array[i], state),
            out_shardings=training.state_shardings(group.sae, group.train, mesh),
        )
        for i, member in enumerate(group.members):
            fvu = float(np.mean(fvus[member]))
            checkpoints.save(managers[member], step, take(state, i), fvu, member.config, member.facts)


def _shardings(group: Group, mesh: jax.sharding.Mesh) -> State:
    """Those of a state, with a leading axis that every device has whole."""
    return jax.tree.map(
        lambda place: jax.NamedSharding(mesh, P(None, *place.spec)),
        training.state_shardings(group.sae, group.train, mesh),
    )


def main(argv: Sequence[str]) -> None:
    config, own = parse(
        ["revelio_jax.grid", *argv],
        __doc__,
        grid=((), "field and values, as sae.k=16,32; may be given several times"),
        form=("auto", "vmap: all members in each operation; map: one after another; auto: map on a CPU"),
    )
    processes.start(config.mesh)
    train(config, own["grid"], own["form"])


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
