"""Train a grid of autoencoders together, in one program: stores, hook points, k, sizes, learning rates and seeds.

    revelio grid --config mini_sd --grid sae.k=10,20 \
        --grid train.learning_rate=1e-3,4e-4
    revelio evaluate --config runs/mini_sd/k=10,learning_rate=0.001/config.json

Each ``--grid FIELD=VALUE,VALUE`` multiplies the number of members; FIELD is one of FIELDS. A member is an
ordinary run in a subfolder of config.run, named after its values. Every other command takes its config.json as
``--config``, and train can continue it alone. ``--config.train.resume=yes`` continues the grid if all members
have a checkpoint of one step.

One compiled program runs a step of all members. ``--form vmap`` batches the members in every operation.
``--form map`` runs one member after another, which saves only reading and compiling. It is the default on a CPU,
where batched gathers and scatters are slow. Rows are read once per store, hook point and seed; each of these streams
has its own buffers in memory. All hook points must have the same width. For a grid over timesteps, extract one store
per timestep and vary extract.store.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import sys
import typing
from collections.abc import Sequence

import jax
from tqdm import tqdm

from revelio_jax.cli import parse, parse_value
from revelio_jax.config import Config, resolve, schema
from revelio_jax.errors import InputError, failure_advice, memory_advice, report_errors
from revelio_jax.sae import sharding
from revelio_jax.training import (
    autotuning,
    checkpoints,
    devices,
    dispatch,
    metrics,
    nonfinite_report,
    processes,
    trackers,
)
from revelio_jax.training.feeds import open_feeds
from revelio_jax.training.fvu_mean import FvuMean
from revelio_jax.training.groups import (
    Group,
    Member,
    initial_states,
    make_grid_step,
    make_groups,
    member_states,
    restored_states,
)
from revelio_jax.training.loader import RowStream
from revelio_jax.training.loop import StepResult, run_steps
from revelio_jax.training.run import (
    MEMORY_ADVICE,
    describe,
    dictionary_size,
    lock,
    make_order,
    open_run,
    restore_newest,
    resumed_step,
    run_folder,
    saved_step_line,
    write_config,
)
from revelio_jax.training.step import State

FIELDS = (
    "sae.k", "sae.expansion", "sae.latents",
    "train.learning_rate", "train.seed", "data.site", "extract.store",
)  # fmt: skip
FORMS = ("auto", "vmap", "map")


def train(config: Config, axes: Sequence[str], form: str = "auto") -> None:
    """Train all members up to config.train.steps. Raise InputError for wrong input, before anything is written.

    ``axes`` are the values of ``--grid``, for example ``sae.k=10,20``.
    """
    if form not in FORMS:
        raise InputError(f"--form is {form!r}; allowed: {', '.join(FORMS)}")

    if config.sae.products in ("kernels", "threshold"):
        raise InputError(
            f"config.sae.products is {config.sae.products}; a grid supports auto, sparse, atomic and dense"
        )
    if config.data.live:
        raise InputError("config.data.live is True; a grid needs stores: revelio extract writes one")

    members, streams = open_members(configs(config, axes))
    with lock(*(member.folder for member in members)):
        _train(config, members, streams, form)


def _train(config: Config, members: Sequence[Member], streams: Sequence[RowStream], form: str) -> None:
    options = config.train
    start = common_step(members)
    if start >= options.steps:
        for member in members:
            checkpoints.remove_leftovers(member.folder)
        print(f"{config.run} is finished: all members have {start} of {options.steps} steps")
        return
    trackers.check(config.logging)
    if config.logging.wandb:
        raise InputError(f"config.logging.wandb is {config.logging.wandb!r}; a grid supports only TensorBoard")
    data, feature = config.mesh.data, config.mesh.feature
    # Mesh and data. All members share one mesh; make_mesh checks that it divides each dictionary size.
    meshes = [sharding.make_mesh(data, feature, options.batch_size, member.latents) for member in members]
    mesh = meshes[0]
    print(devices.describe(list(mesh.devices.flat), os.environ), flush=True)
    lanes = sharding.own_lanes(sharding.processes(mesh), config.data.lanes, jax.process_index())

    # States: restored, or initial.
    form = form if form != "auto" else "map" if mesh.devices.flat[0].platform == "cpu" else "vmap"
    groups = make_groups(members, form)
    if start:
        folders = [member.folder for member in members]
        start, states = restore_newest(start, folders, lambda step: restored_states(groups, step, streams, mesh))
    else:
        states = initial_states(groups, streams, mesh)
    count = dispatch.size(options, streams[0].mixture.d * sum(member.latents for member in members), mesh)
    feeds = open_feeds(config.data.resident, streams, lanes, count, mesh)
    print(f"{len(members)} autoencoders on {len(streams)} row streams; the first one:")
    print(describe(members[0].config, streams[members[0].stream], members[0].latents))
    for member in members:
        write_config(member.folder, member.config)
    xla = autotuning.compiler_options(members[0].folder.parent, mesh)
    train_step = dispatch.make_dispatch(make_grid_step(groups, mesh, form), states, count, mesh, xla)

    # Loop. Metrics of a dispatch are read while the devices compute the next one.
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(failure_advice(lambda: saved_step_line(*(member.folder for member in members))))
        managers = {m: enter(checkpoints.manager(m.folder, m.config.train.keep, start)) for m in members}
        logs = {m: enter(open_log(m, start)) for m in members}
        bar = enter(progress_bar(start, options.steps))
        steps = enter(contextlib.closing(run_steps(train_step, states, streams, feeds, count, start, config)))
        fvu_means = {member: checkpoints.read_fvu_mean(member.folder, start) for member in members}
        last_step = start
        for result in steps:
            last_step = result.step
            fvus = log_members(groups, streams, logs, result)
            fvu_means = {member: fvu_means[member].add(fvu) for member, fvu in fvus}
            bar.update()
            last = [fvu for _, fvu in fvus]
            bar.set_postfix_str(f"FVU {min(last):.4f} to {max(last):.4f}")
            if result.state is not None:
                save(managers, groups, result, fvu_means, mesh)
                fvu_means = dict.fromkeys(members, FvuMean())
    if last_step < options.steps:
        print(f"{config.run} is stopped; step {last_step} is saved, --config.train.resume=yes continues it")
        raise SystemExit(processes.STOPPED)
    print(f"{config.run} is finished: {options.steps} steps; next, for each of its folders:")
    print(f"  revelio evaluate --config {members[0].config.run}/config.json")


def checkpoints_to_keep(config: Config) -> int:
    """Return the number of checkpoints to keep: at least 2, because members may be one apart after a crash."""
    return max(config.train.keep, 2)


def configs(config: Config, axes: Sequence[str]) -> list[Config]:
    """Return the configurations of the members; the last axis varies fastest.

    Raise InputError if an axis is malformed or has no effect, or if two members would have the same folder.
    """
    if not axes:
        raise InputError("--grid is missing; give a field and its values, for example --grid sae.k=16,32")
    axis_values = [_axis(axis) for axis in axes]
    names = [axis[0][0] for axis in axis_values]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--grid has {name} twice; give all its values in one --grid")
    if "sae.expansion" in names and ("sae.latents" in names or config.sae.latents):
        raise InputError("--grid sae.expansion has no effect if sae.latents is set; set sae.latents to None")
    if "extract.store" in names and config.data.stores:
        raise InputError("--grid extract.store has no effect if config.data.stores is set")
    if not config.run:
        raise InputError("config.run is not set; it must name the folder of the grid, for example runs/mini_sd")
    members: list[Config] = []
    for point in itertools.product(*axis_values):
        values = dataclasses.asdict(config)
        values["train"]["keep"] = checkpoints_to_keep(config)  # saved, so that train does not remove one later
        for name, value in point:
            section, key = name.split(".")
            values[section][key] = value
        label = ",".join(f"{name.split('.')[1]}={_short(value)}" for name, value in point)
        values["run"] = f"{config.run.rstrip('/')}/{label}"
        members.append(resolve(values))
    folders = [member.run for member in members]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(f"--grid has two members for the folder {folder}; values must differ in their names")
    return members


def _axis(axis: str) -> list[tuple[str, typing.Any]]:
    """Return the field and one value for every value of ``FIELD=VALUE,VALUE``."""
    name, _, values = axis.partition("=")
    if name not in FIELDS:
        raise InputError(f"--grid {axis}: a grid cannot vary {name!r}; allowed: {', '.join(FIELDS)}")
    kind = schema.base_type(schema.field_spec(name)[0])
    parsed: list[tuple[str, typing.Any]] = []
    for value in values.split(","):
        if not value:
            raise InputError(f"--grid {axis}: {name} is ''; each value must be {schema.TYPE_NAMES[kind]}")
        parsed.append((name, parse_value(f"--grid {axis}: {name}", value, kind)))
    return parsed


def _short(value: object) -> str:
    """Return a value as the name of a folder shows it: the last part of a location, other values as text."""
    return pathlib.PurePosixPath(value).name if isinstance(value, str) else str(value)


def open_members(configs: Sequence[Config]) -> tuple[list[Member], list[RowStream]]:
    """Return the members and the row streams they share.

    Raise InputError if a store or a setting of a member cannot be used, or if hook points differ in width.
    """
    streams: list[RowStream] = []
    stream_of: dict[tuple[str | None, str | None, int], int] = {}
    members: list[Member] = []
    for config in configs:
        key = config.extract.store, config.data.site, config.train.seed
        if key not in stream_of:
            stream_of[key] = len(streams)
            folder, mixture = open_run(config)
            streams.append(RowStream(mixture, make_order(config, mixture)))
        else:
            folder = run_folder(config)
        mixture, first = streams[stream_of[key]].mixture, streams[0].mixture
        if mixture.d != first.d:
            raise InputError(
                f"--grid: {mixture.name} of {mixture.stores[0].location} has width {mixture.d}, but "
                f"{first.name} of {first.stores[0].location} has width {first.d}; all must have the same width"
            )
        identity = checkpoints.run_identity(config, mixture.record())
        latents = dictionary_size(config, mixture.d)
        members.append(Member(config, folder, latents, stream_of[key], identity))
    return members, streams


def common_step(members: Sequence[Member]) -> int:
    """Return the newest step of which all members have a checkpoint, or 0 without checkpoints.

    Raise InputError if members have checkpoints but none of the same step, or if a member cannot be resumed.
    """
    newest = {member.folder: resumed_step(member.folder, member.config.train, member.identity) for member in members}
    step = max((step for step in checkpoints.steps(*newest) if step <= min(newest.values())), default=0)
    if not step and any(newest.values()):
        raise InputError(
            "--grid: the members have no checkpoint of the same step; the newest are "
            + ", ".join(f"{folder.name}: {step or 'none'}" for folder, step in newest.items())
            + "; use the values that the grid started with, or remove folders"
        )
    return step


def open_log(member: Member, start: int) -> metrics.Log:
    """Open the metrics.jsonl of a member, without a progress bar."""
    config, folder = member.config, member.folder
    sinks = trackers.sinks(folder, start, config)
    return metrics.Log(folder / "metrics.jsonl", start, config.train, config.logging.every, sinks, bar=False)


def progress_bar(start: int, steps: int) -> tqdm:
    """Open the progress bar of the grid; only the first process shows it."""
    hidden = not processes.is_first()
    return tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, disable=hidden)


def log_members(
    groups: Sequence[Group],
    streams: Sequence[RowStream],
    logs: dict[Member, metrics.Log],
    result: StepResult[list[State]],
) -> list[tuple[Member, float]]:
    """Log a step for every member and return the FVU of each."""
    fvus: list[tuple[Member, float]] = []
    for group, group_metrics in zip(groups, result.metrics, strict=True):
        for i, member in enumerate(group.members):
            member_metrics = {name: values[i] for name, values in group_metrics.items()}
            values = member_metrics | result.coverage[member.stream]
            with nonfinite_report.stop_on_nonfinite(member.folder, streams[member.stream]):
                line = logs[member].add(result.step, values, result.step_s, result.wait_s)
            fvus.append((member, line["fvu"]))
    return fvus


def save(
    managers: dict[Member, typing.Any],
    groups: Sequence[Group],
    result: StepResult[list[State]],
    fvu_means: dict[Member, FvuMean],
    mesh: jax.sharding.Mesh,
) -> None:
    """Start to save the state of every member as an ordinary checkpoint."""
    for manager in managers.values():  # no member may be two checkpoints ahead of another
        manager.wait_until_finished()
    for group, group_state in zip(groups, result.state or (), strict=True):
        for member, state in member_states(group, group_state, mesh):
            config, identity = member.config, member.identity
            checkpoints.save(managers[member], result.step, state, fvu_means[member], config, identity)


def main(argv: Sequence[str]) -> None:
    config, flags = parse(
        ["revelio_jax.grid", *argv],
        __doc__,
        grid=((), "field and its values, for example sae.k=16,32; can be repeated"),
        form=("auto", "vmap: all members in each operation; map: one after another; auto: map on a CPU, else vmap"),
    )
    advice = "--config.train.resume=yes continues the grid from its newest checkpoints"
    with processes.joined(config.mesh, lambda: advice), memory_advice(MEMORY_ADVICE):
        train(config, flags["grid"], flags["form"])


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
