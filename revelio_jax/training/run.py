"""A training run: its folder, its rows, its dictionary size and the checkpoint it continues from."""

import contextlib
import functools
import pathlib
import typing
from collections.abc import Callable, Generator, Sequence

import jax
import numpy as np

from revelio_jax import file_locks, files, run_folders
from revelio_jax.config import Config, SaeConfig, TrainConfig
from revelio_jax.errors import InputError
from revelio_jax.sae import initial, module, sharding
from revelio_jax.store import object_storage
from revelio_jax.training import checkpoints, live_order, live_rows, loader, processes
from revelio_jax.training.checkpoints import RunIdentity
from revelio_jax.training.loader import RowStream
from revelio_jax.training.mixture import Mixture, RowsRecord, open_mixture
from revelio_jax.training.step import State

MEMORY_ADVICE = (
    "lower config.train.batch_size or the dictionary size; if the host ran out of memory, lower "
    "config.data.buffer_chunks; revelio plan estimates the memory of a run"
)


# The files of a run on object storage that commands need before they choose a checkpoint.
COPIED = (
    "checkpoints/*/_CHECKPOINT_METADATA", "checkpoints/*/metrics/*", "checkpoints/*/sha256.json",
    "metrics.jsonl", "evaluation.json", "wandb_id", "autotune/*",
)  # fmt: skip

T = typing.TypeVar("T")


class Centering(typing.NamedTuple):
    """The normalization (x - mean_D) / scale, the initial decoder bias, and the first rows, normalized."""

    mean_D: np.ndarray
    scale: float
    b_dec_D: np.ndarray
    x_ND: np.ndarray


class RestoredRun(typing.NamedTuple):
    """A run with the parameters of one of its checkpoints on the devices of a mesh."""

    folder: pathlib.Path
    rows: RowsRecord
    state: State
    mesh: jax.sharding.Mesh


def open_run(config: Config, extracts: bool = False) -> tuple[pathlib.Path, Mixture]:
    """Return the folder of the run, which may not exist yet, and the stores it trains on.

    The rows of a live run are extracted if ``extracts`` is True; the caller then closes the mixture. Raise InputError
    if the config names no folder or no stores, if the folder cannot be written, or if a store cannot be used.
    """
    if config.data.live:
        live_rows.check(config)
    folder = run_folder(config)
    if config.data.live:
        return folder, live_rows.open_live(config, folder, extracts)
    if not config.data.stores and not config.extract.store:
        raise InputError(
            "config.extract.store is not set; set it, or set config.data.stores, to the stores to train on"
        )
    # The weight 1 makes any other colon part of the store's location.
    entries = config.data.stores or (f"1:{config.extract.store}",)
    return folder, open_mixture(entries, config.data.site)


def run_folder(config: Config) -> pathlib.Path:
    """Return the folder of the run, which may not exist yet; of a run on object storage, its local copy.

    The copy has the files by which commands choose a checkpoint. Raise InputError if the run is not set or not
    writable, or if several processes would have copies of their own.
    """
    run = config.run
    if not run:
        raise InputError("config.run is not set; it must name the folder of the run, for example runs/mini_sd")
    if object_storage.is_remote(run) and jax.process_count() > 1:
        raise InputError(f"config.run is {run!r}; with several processes it must be a folder that all of them share")
    return run_folders.open_folder(run, *COPIED)


@contextlib.contextmanager
def lock(*folders: pathlib.Path) -> Generator[None]:
    """Lock the folders of runs in the block, so that no other training changes them. Remove them if they stay empty.

    Only the first process locks. Raise InputError if another training holds one of them.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders if processes.is_first() else ():
            stack.enter_context(_created(folder))
            message = f"config.run is {run_folders.location(folder)!r}, which another process is training"
            stack.enter_context(file_locks.refusing(folder, f"{message}; wait for it, or choose another run"))
        yield


@contextlib.contextmanager
def _created(folder: pathlib.Path) -> Generator[None]:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()


def resumed_step(folder: pathlib.Path, train: TrainConfig, identity: RunIdentity) -> int:
    """Return the step of the newest checkpoint whose JSON part can be read, or 0 if the run has no checkpoint.

    Raise InputError if the run has a checkpoint but ``train.resume`` is False, if its identity is not ``identity``, or
    if only one of the two has a moving average.
    """
    step = checkpoints.newest_step(folder)
    if not step:
        return 0
    if not train.resume:
        raise InputError(
            f"config.run is {run_folders.location(folder)!r}, which has checkpoints up to step {step}; "
            "pass --config.train.resume=yes to continue it, or choose another run"
        )
    location = run_folders.location(folder)
    step, meta = checkpoints.first_readable(
        location, lambda: checkpoints.steps(folder), lambda step: checkpoints.read_meta(folder, step)
    )
    checkpoints.check(folder, meta, identity)
    ema = meta["config"]["train"]["ema"]
    if (ema is None) != (train.ema is None):
        raise InputError(
            f"config.train.ema is {train.ema}, but run {location} was trained with {ema}; set it back, or choose "
            "another config.run"
        )
    return step


def restore_newest(start: int, folders: Sequence[pathlib.Path], restore: Callable[[int], T]) -> tuple[int, T]:
    """Return the newest step up to ``start`` that all runs can restore, and ``restore(step)``."""

    def candidates() -> list[int]:
        return [step for step in checkpoints.steps(*folders) if step <= start]

    return checkpoints.first_readable(_common_location(folders), candidates, restore)


def write_config(folder: pathlib.Path, config: Config) -> None:
    """Create the folder of the run and write config.json into it, from the first process only."""
    folder.mkdir(parents=True, exist_ok=True)
    if processes.is_first():
        files.write_text(folder / "config.json", config.to_json())


def saved_step_line(*folders: pathlib.Path) -> str:
    """Return the newest saved step of a run, or of the runs of a grid, as advice after a failure."""
    step, run = checkpoints.newest_step(*folders), _common_location(folders)
    if not step:
        return f"no step of {run} is saved"
    return f"step {step} of {run} is saved; --config.train.resume=yes continues it"


def restore_run(config: Config, mixture: Mixture | None = None) -> RestoredRun:
    """Restore the parameters of the checkpoint that ``config.train.use`` chooses: the newest, or the lowest FVU.

    Only the run folder is read. If the checkpoint is broken, print a line and restore the next one. Raise InputError if
    the run has no good checkpoint, or if its checkpoints belong to another configuration or, with ``mixture``, to
    other stores.
    """
    folder = run_folder(config)

    def read(step: int) -> RestoredRun:
        meta = checkpoints.read_meta(folder, step)
        if mixture or "rows" not in meta:  # earlier versions did not save rows
            rows = (mixture or open_run(config)[1]).record()
        else:
            rows = meta["rows"].copy()
            rows["site"] = config.data.site or rows["site"]
        checkpoints.check(folder, meta, checkpoints.run_identity(config, rows))
        latents = dictionary_size(config, rows["d"])
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.feature, config.train.batch_size, latents)
        state = checkpoints.restore_parameters(folder, step, meta, latents, rows["d"], config.sae, config.train, mesh)
        return RestoredRun(folder, rows, state, mesh)

    candidates = functools.partial(checkpoints.ranked_steps, folder, config.train.use)
    return checkpoints.first_readable(run_folders.location(folder), candidates, read)[1]


def _common_location(folders: Sequence[pathlib.Path]) -> str:
    """Return the location of a run, or of the grid that several runs belong to."""
    location = run_folders.location(folders[0])
    return location if len(folders) == 1 else location.rpartition("/")[0]


def make_order(config: Config, mixture: Mixture) -> loader.Order:
    """Return the order of the run's rows. Raise InputError if the stores have too few rows for it."""
    if isinstance(mixture, live_rows.LiveMixture):
        return live_order.make_order(mixture, mixture.split, config)
    return loader.make_order(
        mixture,
        config.train.seed,
        config.train.batch_size,
        config.data.buffer_chunks,
        config.data.held_out,
        config.data.lanes,
    )


def dictionary_size(config: Config, d: int) -> int:
    """Return the number of latents for activations of width ``d``. Raise InputError if k or a chunk exceeds it."""
    sae = config.sae
    latents = sae.latents or d * sae.expansion
    source = "config.sae.latents" if sae.latents else f"width {d} x config.sae.expansion"
    for name, k in (("k", sae.k), ("k_start", sae.k_start)):
        if k and k > latents:
            raise InputError(
                f"config.sae.{name} is {k}; it must be at most {latents}, the number of latents ({source})"
            )
    candidates = min(module.slots(sae), latents)
    if sae.encode_chunk and sae.encode_chunk < candidates:
        raise InputError(
            f"config.sae.encode_chunk is {sae.encode_chunk}; it must be None or at least {candidates}, the candidate "
            "latents of a row"
        )
    return latents


def center(sae: SaeConfig, stream: RowStream) -> Centering:
    """Return the normalization, the initial decoder bias [D] and the normalized first rows [N, D]."""
    mean_D, scale = normalization(sae.normalize, stream.mixture)
    x_ND = (loader.first_rows(stream.mixture, stream.order, sae.b_dec_init_rows) - mean_D) / scale
    return Centering(mean_D, scale, initial.bias(sae.b_dec_init, x_ND), x_ND)


def normalization(rule: str, mixture: Mixture) -> tuple[np.ndarray, float]:
    """Return the mean [D] and the scale s of (x - mean) / s, from the stores' statistics of all rows.

    ``rule`` is config.sae.normalize. One scale for all columns preserves directions and angles, and folds
    exactly into an export. Raise InputError if all rows are equal.
    """
    if rule == "none":
        return np.zeros(mixture.d, np.float32), 1.0
    scale = float(np.sqrt(mixture.variance.mean()))
    if not scale > 0:
        raise InputError(f"site {mixture.name}: all rows are equal, so there is nothing to learn")
    return mixture.mean.astype(np.float32), scale


def describe(config: Config, stream: RowStream, latents: int) -> str:
    """Return lines that describe the rows, the autoencoder and the length of the run, with warnings."""
    sae, options = config.sae, config.train
    mixture, order = stream
    offset = np.linalg.norm(mixture.mean) / max(np.sqrt(mixture.variance.sum()), 1e-30)
    held_out = loader.length(order.held_out)
    epochs = options.steps * options.batch_size / order.rows
    lines = [
        f"{mixture.name}: width {mixture.d}, {latents} latents, k {sae.k}; {order.rows:,} training rows, "
        f"{held_out:,} held out; {options.steps:,} steps of {options.batch_size:,} rows are {epochs:.1f} epochs",
        f"||mean|| / ||std|| of the rows is {offset:.2f}; normalize: {sae.normalize}",
    ]
    is_live = isinstance(mixture, live_rows.LiveMixture)
    sites = config.extract.sites if is_live else mixture.stores[0].site_names
    if len(sites) > 1 and not config.data.site:
        lines.append(f"{mixture.name} is the first of {len(sites)} hook points; config.data.site chooses another")
    if is_live:
        lines.append(mixture.describe())
    if len(mixture.stores) > 1:
        lines[1:1] = [
            f"{float(source.share):.1%} of the rows from {source.location}: {len(source.stores)} stores, "
            f"{sum(lane[i].rows for lane in order.streams):,} training rows"
            for i, source in enumerate(mixture.sources)
        ]
    if sae.k_aux and sae.dead_after_rows > options.steps * options.batch_size / 2:
        lines.append(
            f"warning: config.sae.dead_after_rows is {sae.dead_after_rows:,}, more than half of the rows of this run; "
            "AuxK will hardly revive dead latents"
        )
    if sae.architecture == "dense" and latents >= mixture.d:
        lines.append(
            f"warning: config.sae.architecture is dense, which is meant to be undercomplete; {latents} latents are "
            f"not fewer than the width {mixture.d}"
        )
    return "\n".join(lines)
