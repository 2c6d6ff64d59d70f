"""Checkpoints of a run, written by Orbax: the state and the identity of the run.

Saving is asynchronous. A checkpoint that a crash interrupts keeps its temporary name and is ignored. For a run on
object storage, Orbax writes to the local copy, and the step waits until the checkpoint is uploaded.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import sys
import typing
from collections.abc import Generator

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from revelio_jax import run_folders
from revelio_jax.config import Config, SaeConfig, TrainConfig
from revelio_jax.errors import InputError
from revelio_jax.sae import forms
from revelio_jax.training import optimizer
from revelio_jax.training.mixture import Mixture
from revelio_jax.training.step import State, abstract_state


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """The values that a checkpoint and the run that resumes it must share.

    These are the autoencoder, the stores, and the fields that decide which rows a step reads and which rows are held
    out.
    """

    fingerprint: str
    site: str
    sae: SaeConfig
    seed: int
    batch_size: int
    held_out: float
    buffer_chunks: int
    lanes: int

    def sections(self) -> dict[str, dict[str, typing.Any]]:
        """Return the values by section and field of the configuration, in the types that JSON restores."""
        data = ("held_out", "buffer_chunks", "lanes", "site")
        sections = {
            "config.sae": dataclasses.asdict(self.sae),
            "config.train": {"seed": self.seed, "batch_size": self.batch_size},
            "config.data": {name: getattr(self, name) for name in data},
        }
        return json.loads(json.dumps(sections))  # a tuple is a list in JSON


def run_identity(config: Config, mixture: Mixture) -> RunIdentity:
    """Return the identity of the run of ``config`` on the stores of ``mixture``."""
    return RunIdentity(
        fingerprint=mixture.fingerprint,
        site=mixture.name,
        sae=config.sae,
        seed=config.train.seed,
        batch_size=config.train.batch_size,
        held_out=config.data.held_out,
        buffer_chunks=config.data.buffer_chunks,
        lanes=config.data.lanes,
    )


@contextlib.contextmanager
def manager(folder: pathlib.Path, keep: int) -> Generator[ocp.CheckpointManager]:
    """Open the checkpoints of a run for writing; wait for the last save on exit.

    The ``keep`` newest checkpoints and the one with the lowest FVU are kept. An error while a checkpoint is written,
    for example on a full disk, is raised by the next save or on exit.
    """
    policies = [
        preservation_policy.LatestN(keep),
        preservation_policy.BestN(get_metric_fn=_fvu, reverse=True, n=1),
    ]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        best_fn=_fvu,  # without it, Orbax does not read the metrics of checkpoints from before a resume
        best_mode="min",
        cleanup_tmp_directories=True,
    )
    with _quiet_threads(), ocp.CheckpointManager(_checkpoints(folder), options=options) as checkpoints:
        yield checkpoints
        checkpoints.wait_until_finished()
    run_folders.push(folder)


def newest_step(*folders: pathlib.Path) -> int:
    """Return the newest step for which all runs have a finished checkpoint, or 0. Create no folder."""
    return max(set.intersection(*(set(_steps(folder)) for folder in folders)), default=0)


def best_step(folder: pathlib.Path) -> int:
    """Return the step of the checkpoint with the lowest FVU, the newest of equal ones, or 0 without checkpoints."""

    def rank(step: int) -> tuple[float, int]:
        path = _checkpoints(folder) / str(step) / "metrics" / "metrics"
        return -_fvu(json.loads(path.read_text())), step

    return max(_steps(folder), key=rank, default=0)


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: State,
    fvu: float,
    config: Config,
    identity: RunIdentity,
) -> None:
    """Start saving the state after ``step`` steps.

    ``fvu`` is the mean over the batches since the previous checkpoint; it decides which checkpoint is the best.
    """
    meta = {
        "identity": {"store fingerprint": identity.fingerprint, **identity.sections()},
        "config": dataclasses.asdict(config),
    }
    saved = dataclasses.replace(state, rounded=None)
    items = ocp.args.Composite(state=ocp.args.StandardSave(saved), meta=ocp.args.JsonSave(meta))
    checkpoints.save(step, args=items, metrics={"fvu": fvu})
    folder = pathlib.Path(checkpoints.directory).parent
    if run_folders.is_copy(folder):
        checkpoints.wait_until_finished()
        run_folders.push(folder)


def check(folder: pathlib.Path, step: int, identity: RunIdentity) -> None:
    """Raise InputError, naming the first difference, if the checkpoint has another identity."""
    saved = _read(folder, step, meta=ocp.args.JsonRestore())["meta"]["identity"]
    pairs = [("store fingerprint", identity.fingerprint, saved["store fingerprint"])]
    for section, fields in identity.sections().items():
        pairs += [(f"{section}.{name}", value, saved[section].get(name)) for name, value in fields.items()]
    for name, value, saved_value in pairs:
        if value != saved_value:
            raise InputError(
                f"{name} is {value!r}, but run {run_folders.location(folder)} was trained with {saved_value!r}; "
                "set it back, or choose another config.run"
            )


def restore(
    folder: pathlib.Path,
    step: int,
    latents: int,
    d: int,
    sae: SaeConfig,
    train: TrainConfig,
    mesh: jax.sharding.Mesh,
) -> State:
    """Return the state after ``step`` steps on the devices of ``mesh``, which may differ from the saved one."""
    target = dataclasses.replace(abstract_state(latents, d, sae, train, mesh), rounded=None)
    resolved = forms.resolved(sae, latents, mesh)
    make_rounded = functools.partial(optimizer.rounded, sae=resolved)
    state = _read(folder, step, state=ocp.args.StandardRestore(target))["state"]
    return dataclasses.replace(state, rounded=jax.jit(make_rounded)(state.params))


def _read(folder: pathlib.Path, step: int, **items: ocp.args.CheckpointArgs) -> typing.Any:
    run_folders.pull(folder, f"checkpoints/{step}/*")
    # Not a CheckpointManager, because one that only reads logs warnings.
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(_checkpoints(folder) / str(step), args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _quiet_threads() -> Generator[None]:
    """Print no traceback of a failed write in the block: the main thread raises the first one.

    Orbax logs the exceptions of its threads. TensorStore reports later failed writes to sys.unraisablehook, as an
    event loop that Orbax has closed; some fail after the block, so the hook stays after an exception.
    """
    logger, print_error = logging.getLogger("absl"), sys.unraisablehook

    def has_no_traceback(record: logging.LogRecord) -> bool:
        return record.exc_info is None

    def print_unless_closed(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            print_error(unraisable)

    logger.addFilter(has_no_traceback)
    sys.unraisablehook = print_unless_closed
    try:
        yield
        sys.unraisablehook = print_error
    finally:
        logger.removeFilter(has_no_traceback)


def _fvu(metrics: dict[str, float]) -> float:
    return metrics["fvu"]


def _steps(folder: pathlib.Path) -> list[int]:
    if run_folders.is_copy(folder):  # the copy may lack an old checkpoint, and have one that is not uploaded
        files = run_folders.saved(folder, "checkpoints/*/_CHECKPOINT_METADATA")
        return [int(name) for file in files if (name := file.split("/")[1]).isdecimal()]
    return ocp.utils.checkpoint_steps(_checkpoints(folder)) if _checkpoints(folder).is_dir() else []


def _checkpoints(folder: pathlib.Path) -> pathlib.Path:
    return folder.absolute() / "checkpoints"
