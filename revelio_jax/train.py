"""Train a k-sparse autoencoder on one hook point of an activation store, or on a mixture of stores.

    revelio train --config mini_sd
    revelio train --config mini_sd --config.train.resume=yes

Writes config.json, metrics.jsonl and checkpoints/ into the folder config.run. A run that is stopped at any
moment and resumed gives the same bits as an uninterrupted run. A non-finite loss ends the run with status 1 and
writes the rows of that step to nonfinite.json.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence

import jax

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import failure_advice, memory_advice, report_errors
from revelio_jax.sae import initial, sharding
from revelio_jax.sae.kernels import choice
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
from revelio_jax.training.loader import RowStream
from revelio_jax.training.loop import run_steps
from revelio_jax.training.mixture import Mixture
from revelio_jax.training.run import (
    MEMORY_ADVICE,
    center,
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
from revelio_jax.training.step import initial_state, make_train_step


def train(config: Config) -> None:
    """Train up to config.train.steps. Raise InputError for a wrong config or store, before anything is written.

    A failure of the machine later, for example a full disk, has a note with the last saved step.
    """
    folder, mixture = open_run(config, extracts=True)
    with contextlib.closing(mixture), lock(folder):
        _train(config, folder, mixture)


def _train(config: Config, folder: pathlib.Path, mixture: Mixture) -> None:
    sae, options, logging = config.sae, config.train, config.logging
    identity = checkpoints.run_identity(config, mixture.record())
    start = resumed_step(folder, options, identity)
    if start >= options.steps:
        checkpoints.remove_leftovers(folder)
        print(f"{config.run} is finished: it has {start} of {options.steps} steps")
        return
    trackers.check(logging)

    # Mesh and data.
    latents = dictionary_size(config, mixture.d)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.feature, options.batch_size, latents)
    print(devices.describe(list(mesh.devices.flat), os.environ), flush=True)
    lanes = sharding.own_lanes(sharding.processes(mesh), config.data.lanes, jax.process_index())
    stream = RowStream(mixture, make_order(config, mixture))
    sae, without_kernels = choice.with_kernels(sae, latents, mixture.d, mesh)
    count = dispatch.size(options, latents * mixture.d, mesh)

    # State: restored, or initial.
    if start:
        start, state = restore_newest(
            start,
            [folder],
            lambda step: checkpoints.restore(folder, step, latents, mixture.d, sae, options, mesh),
        )
        mixture.prepare(stream.order, config, start, count)  # not before: ``start`` may be an earlier step now
    else:
        mixture.prepare(stream.order, config, start, count)
        mean_D, scale, b_dec_D, x_ND = center(sae, stream)
        params = initial.initial_params(sae, options.seed, latents, b_dec_D, x_ND, mesh)
        state = initial_state(params, mean_D, scale, sae, options, mesh)
    # Steps: several per dispatch where a step is short, on rows that stay on the devices if they fit.
    resident = "no" if config.data.live else config.data.resident
    feeds = open_feeds(resident, [stream], lanes, count, mesh)
    print(describe(config, stream, latents), *filter(None, [without_kernels]), sep="\n")
    write_config(folder, config)
    xla = autotuning.compiler_options(folder, mesh)
    train_step = dispatch.make_dispatch(make_train_step(sae, options, mesh), state, count, mesh, xla)

    # Loop. Metrics of a dispatch are read while the devices compute the next one.
    with (
        failure_advice(lambda: saved_step_line(folder)),
        nonfinite_report.stop_on_nonfinite(folder, stream),
        checkpoints.manager(folder, options.keep, start) as manager,
        metrics.Log(
            folder / "metrics.jsonl", start, options, logging.every, trackers.sinks(folder, start, config)
        ) as log,
        contextlib.closing(run_steps(train_step, state, [stream], feeds, count, start, config)) as steps,
    ):
        last_step, fvu_mean = start, checkpoints.read_fvu_mean(folder, start)
        for result in steps:
            last_step = result.step
            # The only stream of rows (a grid has several). Raises NotFinite before a bad state is saved.
            line = log.add(result.step, result.metrics | result.coverage[0], result.step_s, result.wait_s)
            fvu_mean = fvu_mean.add(line["fvu"])
            if result.state is not None:
                checkpoints.save(manager, result.step, result.state, fvu_mean, config, identity)
                fvu_mean = FvuMean()
            mixture.release(stream.order, config, result.step)
    if last_step < options.steps:
        saved = f"step {last_step} is saved" if last_step else "no step is saved"
        print(f"{config.run} is stopped; {saved}, --config.train.resume=yes continues it")
        raise SystemExit(processes.STOPPED)
    print(f"{config.run} is finished: {options.steps} steps; next: revelio evaluate --config {config.run}/config.json")


def main(argv: Sequence[str]) -> None:
    config, _ = parse(["revelio_jax.train", *argv], __doc__)
    with processes.joined(config.mesh, lambda: saved_step_line(run_folder(config))), memory_advice(MEMORY_ADVICE):
        train(config)


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
