"""Train a k-sparse autoencoder on one site of an activation store, or of several.

    python -m revelio_jax.train --config configs/mini_sd.py
    python -m revelio_jax.train --config configs/mini_sd.py --config.train.resume=True

Writes the folder config.run: config.json, metrics.jsonl and checkpoints. A run that is stopped
at any moment and resumed goes on bit for bit as if it had never stopped. A loss that is not finite
stops it with status 1, and with nonfinite.json about the rows of that step.
"""

import contextlib
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from revelio_jax.cli import parse
from revelio_jax.config import Config, SaeConfig
from revelio_jax.errors import InputError, reported
from revelio_jax.sae import initial, module, sharding
from revelio_jax.training import checkpoints, coverage, loader, metrics, nonfinite_report, processes, trackers
from revelio_jax.training import step as training
from revelio_jax.training.mixture import Mixture, open_mixture


def train(config: Config) -> None:
    """Train up to config.train.steps. Raises InputError before anything is written."""
    sae, options = config.sae, config.train

    # Config and stores.
    run, mixture = open_run(config)
    facts = checkpoints.identity(config, mixture.fingerprint, mixture.name)
    start = resumed_step(run, options.resume, facts)
    if start >= options.steps:
        print(f"{run} is finished: it has {start} of {options.steps} steps, nothing is left to do")
        return
    trackers.check(config.logging)

    # Mesh and data.
    latents = dictionary_size(config, mixture.d)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.feature, options.batch_size, latents)
    lanes = sharding.own_lanes(sharding.processes(mesh), config.data.lanes, jax.process_index())
    order = make_order(config, mixture)

    # State: restored, or initial.
    if start:
        state = checkpoints.restore(run, start, latents, mixture.d, sae, options, mesh)
    else:
        mean_D, scale, b_dec_D, x_ND = centre(sae, mixture, order)
        params = initial.initial_params(sae, options.seed, latents, b_dec_D, x_ND, mesh)
        state = training.initial_state(params, mean_D, scale, sae, options, mesh)
    train_step = training.make_train_step(sae, options, mesh)
    print(describe(config, mixture, order, latents))

    # Loop. A step is dispatched before the metrics of the one before are read, so the device never waits.
    run.mkdir(parents=True, exist_ok=True)
    if processes.is_first():
        (run / "config.json").write_text(config.to_json())
    with (
        nonfinite_report.explained(run, mixture, order),
        checkpoints.manager(run, options.keep) as manager,
        contextlib.closing(loader.batches(mixture, order, start, lanes)) as rows,
        metrics.Log(
            run / "metrics.jsonl", start, options, config.logging.every, trackers.sinks(run, start, config)
        ) as log,
        processes.sigterm() as asked_to_stop,
    ):
        before, fvus = None, []
        for step in range(start + 1, options.steps + 1):
            asked = time.perf_counter()
            x_BD = sharding.put_batch(mesh, next(rows))
            waited_s = time.perf_counter() - asked
            state, measured = train_step(state, x_BD)
            if metrics.is_logged(step, config.logging.every, options.steps):  # while the device works
                measured |= coverage.measure(mixture, order, step - 1)
            if before:
                fvus.append(log.add(*before)["fvu"])
            before = step, measured, waited_s
            stop = asked_to_stop(step)
            if step % options.checkpoint_every == 0 or step == options.steps or stop:
                fvus.append(log.add(*before)["fvu"])  # raises if the state is no good: it is not saved
                checkpoints.save(manager, step, state, float(np.mean(fvus)), config, facts)
                before, fvus = None, []
            if stop:
                break
    if step < options.steps:
        print(f"{run} was asked to stop; step {step} is saved, --config.train.resume=True goes on")
        raise SystemExit(processes.STOPPED)
    print(f"{run} is finished: {options.steps} steps; next: python -m revelio_jax.evaluate")


def open_run(config: Config) -> tuple[pathlib.Path, Mixture]:
    """The run's folder (which need not exist) and its stores. Raises InputError."""
    if not config.run:
        raise InputError("config.run is empty; it names the folder of the run, as runs/mini_sd")
    if not config.data.stores and not config.extract.store:
        raise InputError("config.extract.store is empty; it, or config.data.stores, names what to train on")
    run = pathlib.Path(config.run)
    if run.exists() and not run.is_dir():
        raise InputError(f"config.run is {config.run!r}, which is no folder")
    entries = config.data.stores or (f"1:{config.extract.store}",)  # a weight: other colons are the name's
    return run, open_mixture(entries, config.data.site)


def resumed_step(run: pathlib.Path, resume: bool, facts: dict) -> int:
    """The step of the newest checkpoint, 0 where there is none. Raises InputError where it may not go on."""
    step = checkpoints.newest(run)
    if not step:
        return 0
    if not resume:
        raise InputError(
            f"config.run is {str(run)!r}, which has checkpoints up to step {step}; "
            "pass --config.train.resume=True to go on with it, or choose another run"
        )
    checkpoints.check(run, step, facts)
    return step


def make_order(config: Config, mixture: Mixture) -> loader.Order:
    """The order of the run's rows. Raises InputError."""
    return loader.make_order(
        mixture,
        config.train.seed,
        config.train.batch_size,
        config.data.buffer_chunks,
        config.data.held_out,
        config.data.lanes,
    )


def dictionary_size(config: Config, d: int) -> int:
    """Latents of the autoencoder on a site of width ``d``. Raises InputError where it does not fit."""
    sae = config.sae
    latents = sae.latents or d * sae.expansion
    where = "config.sae.latents" if sae.latents else f"width {d} x config.sae.expansion"
    for name in ("k", "k_start"):
        if (k := getattr(sae, name)) and k > latents:
            raise InputError(f"config.sae.{name} is {k}; it must be at most {latents}, the latents ({where})")
    chosen = min(module.slots(sae), latents)
    if sae.encode_chunk and sae.encode_chunk < chosen:
        raise InputError(
            f"config.sae.encode_chunk is {sae.encode_chunk}; it must be None or at least {chosen}, the latents "
            "that are looked for in it"
        )
    return latents


def centre(sae: SaeConfig, mixture: Mixture, order: loader.Order) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Mean [d] and scale of the rows; the initial decoder bias [d], and the first rows [N, d], normalised."""
    mean_D, scale = normalisation(sae.normalize, mixture)
    x_ND = (loader.first_rows(mixture, order, sae.b_dec_init_rows) - mean_D) / scale
    return mean_D, scale, initial.bias(sae.b_dec_init, x_ND), x_ND


def normalisation(rule: str, mixture: Mixture) -> tuple[np.ndarray, float]:
    """Mean [d] and the one scale s of (x - mean) / s, from the stores' statistics of all their rows.

    One scale for all columns keeps directions and angles, and folds exactly into an export.
    """
    if rule == "none":
        return np.zeros(mixture.d, np.float32), 1.0
    scale = float(np.sqrt(mixture.variance.mean()))
    if not scale > 0:
        raise InputError(f"site {mixture.name}: all rows are equal, there is nothing to learn")
    return mixture.mean.astype(np.float32), scale


def describe(config: Config, mixture: Mixture, order: loader.Order, latents: int) -> str:
    """What is trained on what, and warnings."""
    sae, options = config.sae, config.train
    off_centre = np.linalg.norm(mixture.mean) / max(np.sqrt(mixture.variance.sum()), 1e-30)
    held_out = loader.length(order.held_out)
    epochs = options.steps * options.batch_size / order.rows
    lines = [
        f"{mixture.name}: width {mixture.d}, {latents} latents, k {sae.k}; {order.rows:,} rows to train on, "
        f"{held_out:,} held out; {options.steps:,} steps of {options.batch_size:,} are {epochs:.1f} epochs",
        f"||mean|| / ||std|| of the rows is {off_centre:.2f}; normalise: {sae.normalize}",
    ]
    if len(mixture.stores) > 1:
        lines[1:1] = [
            f"{float(source.share):.1%} of the rows from {source.location}: stores {len(source.stores)}, "
            f"rows to train on {sum(lane[i].rows for lane in order.streams):,}"
            for i, source in enumerate(mixture.sources)
        ]
    if sae.k_aux and sae.dead_after_rows > options.steps * options.batch_size / 2:
        lines.append(
            f"warning: config.sae.dead_after_rows is {sae.dead_after_rows:,}, more than half of this run; "
            "AuxK will hardly revive dead latents"
        )
    if sae.architecture == "dense" and latents >= mixture.d:
        lines.append(
            f"warning: config.sae.architecture dense is meant to be undercomplete; {latents} latents are not "
            f"fewer than the width {mixture.d}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    config, _ = parse(["revelio_jax.train", *argv], __doc__)
    processes.start(config.mesh)
    train(config)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
