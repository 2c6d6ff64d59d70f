"""Checkpoints of a run, written by Orbax: the state, the identity of the run and a record of its rows.

Saving is asynchronous. A checkpoint that a crash interrupts keeps its temporary name and is ignored. A checkpoint that
cannot be read, or whose files do not match their checksums, is passed over: :func:`first_readable` takes the next
older one.

For a run on object storage, Orbax writes to the local copy, and the step waits until the checkpoint is uploaded.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import pathlib
import shutil
import sys
import typing
from collections.abc import Callable, Generator

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from revelio_jax import run_folders
from revelio_jax.config import Config, SaeConfig, TrainConfig
from revelio_jax.errors import InputError, first_sentence, is_out_of_memory, single_line
from revelio_jax.sae import forms
from revelio_jax.training import checkpoint_checksums, dispatch, optimizer, processes
from revelio_jax.training.fvu_mean import FvuMean
from revelio_jax.training.mixture import RowsRecord
from revelio_jax.training.step import State, abstract_state

T = typing.TypeVar("T")


class Meta(typing.TypedDict):
    """The JSON part of a checkpoint."""

    identity: dict[str, typing.Any]
    config: dict[str, typing.Any]
    rows: typing.NotRequired[RowsRecord]  # earlier versions did not save it
    fvu_mean: typing.NotRequired[tuple[float, int]]  # of the steps since the last planned checkpoint, if not planned


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """The values that a checkpoint and the run that resumes it must share.

    These are the autoencoder, the stores by their fingerprint, and the fields that decide which rows a step reads and
    which rows are held out.
    """

    rows: RowsRecord
    sae: SaeConfig
    seed: int
    batch_size: int
    held_out: float
    buffer_chunks: int
    lanes: int
    live: bool
    live_shards: int | None  # None if not live

    def sections(self) -> dict[str, dict[str, typing.Any]]:
        """Return the values by section and field of the configuration, in the types that JSON restores."""
        data = ("live", "live_shards", "held_out", "buffer_chunks", "lanes")
        sections = {
            "config.sae": dataclasses.asdict(self.sae),
            "config.train": {"seed": self.seed, "batch_size": self.batch_size},
            "config.data": {**{name: getattr(self, name) for name in data}, "site": self.rows["site"]},
        }
        return json.loads(json.dumps(sections))  # a tuple is a list in JSON


def run_identity(config: Config, rows: RowsRecord) -> RunIdentity:
    """Return the identity of the run of ``config`` on ``rows``."""
    return RunIdentity(
        rows=rows,
        sae=config.sae,
        seed=config.train.seed,
        batch_size=config.train.batch_size,
        held_out=config.data.held_out,
        buffer_chunks=config.data.buffer_chunks,
        lanes=config.data.lanes,
        live=config.data.live,
        live_shards=config.data.live_shards if config.data.live else None,
    )


@contextlib.contextmanager
def manager(folder: pathlib.Path, keep: int, start: int) -> Generator[ocp.CheckpointManager]:
    """Open the checkpoints of a run that continues after ``start`` steps for writing; wait for the last save on exit.

    The ``keep`` newest checkpoints and the one with the lowest FVU are kept. Checkpoints after ``start`` are broken, or
    other runs of a grid do not have them; they are removed, because the run writes them again. An error while a
    checkpoint is written, for example on a full disk, is raised by the next save or on exit.
    """
    if processes.is_first():
        for step in _steps(folder):
            if step > start:
                shutil.rmtree(_checkpoints(folder) / str(step))
            elif _saved_fvu(folder, step) is None:  # Orbax does not open a folder with broken metrics
                shutil.rmtree(_checkpoints(folder) / str(step) / "metrics", ignore_errors=True)
    processes.wait_for_all("checkpoints after the first step are removed")
    policies = [
        preservation_policy.LatestN(keep),
        preservation_policy.BestN(get_metric_fn=_fvu, reverse=True, n=1, keep_checkpoints_without_metrics=False),
    ]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        best_fn=_fvu,  # without it, Orbax does not read the metrics of checkpoints from before a resume
        best_mode="min",
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=functools.partial(_write_checksums, folder)),
    )
    with _quiet_threads(), ocp.CheckpointManager(_checkpoints(folder), options=options) as checkpoints:
        yield checkpoints
        checkpoints.wait_until_finished()
    run_folders.push(folder)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Remove the checkpoints that a run left when it was killed after its last checkpoint. Keep all other folders.

    These are checkpoints without state or JSON part, and older whole ones that :func:`manager` would not keep. The
    configuration in the newest whole checkpoint decides about the whole ones, because the present one may have a
    lower ``config.train.keep`` or ``config.train.steps``. All are kept if that run has not reached its last step.
    """
    if run_folders.is_copy(folder):
        return
    whole = [step for step in steps(folder) if _is_whole(_checkpoints(folder) / str(step))]
    kept = _finally_kept(folder, whole)
    if not processes.is_first():
        return
    for path in _checkpoints(folder).iterdir():
        is_partial = path.name.isdecimal() and not _is_whole(path)
        is_old = path.name in map(str, set(whole) - set(kept))
        if path.is_dir() and (is_partial or is_old or path.match(checkpoint_checksums.UNFINISHED)):
            shutil.rmtree(path)


def _finally_kept(folder: pathlib.Path, whole: list[int]) -> list[int]:
    """Return the steps among ``whole``, newest first, that the finished run keeps. All processes must call it."""
    if not whole:
        return []
    try:
        train = read_meta(folder, whole[0])["config"]["train"]
        last, keep = int(train["steps"]), int(train["keep"])
    except Exception:  # Orbax raises errors of many classes for broken files
        return whole
    if whole[0] != last or keep < 1:
        return whole
    best = [step for step in ranked_steps(folder, "best") if step in whole]
    return whole[:keep] + best[:1]


def _is_whole(checkpoint: pathlib.Path) -> bool:
    return (checkpoint / "state").is_dir() and (checkpoint / "meta").is_dir()


def steps(*folders: pathlib.Path) -> list[int]:
    """Return the steps for which all runs have a finished checkpoint, newest first. Create no folder."""
    return sorted(set.intersection(*(set(_steps(folder)) for folder in folders)), reverse=True)


def newest_step(*folders: pathlib.Path) -> int:
    """Return the newest step for which all runs have a finished checkpoint, or 0. Create no folder."""
    return max(steps(*folders), default=0)


def ranked_steps(folder: pathlib.Path, use: str) -> list[int]:
    """Return the steps of all checkpoints in the order of ``config.train.use``: newest first, or lowest FVU first."""

    def rank(step: int) -> tuple[float, int]:
        fvu = _saved_fvu(folder, step) if use == "best" else 0.0
        return -math.inf if fvu is None else -fvu, step

    return sorted(_steps(folder), key=rank, reverse=True)


def first_readable(run: str, candidates: Callable[[], list[int]], read: Callable[[int], T]) -> tuple[int, T]:
    """Return the first step of ``candidates()`` whose checkpoint can be read, and ``read(step)``.

    Print a line if checkpoints were passed over. A training run that goes on may remove a checkpoint while it is read,
    so candidates are listed again after each failure. Messages name the location ``run``. Raise InputError if no
    checkpoint can be read, or if one cannot with several processes, which might see different files.
    """
    faults: dict[int, str] = {}
    while left := [step for step in candidates() if step not in faults]:
        try:
            with _ignoring_leftovers():
                result = read(left[0])
        except InputError:
            raise
        except Exception as error:  # Orbax raises errors of many classes for broken files
            if is_out_of_memory(error):
                raise
            if left[0] in candidates():
                faults[left[0]] = single_line(first_sentence(error))
            if jax.process_count() > 1:
                break
            continue
        if faults:
            text = f"checkpoint {_list(faults)} of {run} cannot be read; step {left[0]} is used instead"
            print(f"warning: {text}", file=sys.stderr)
        return left[0], result
    if not faults:
        raise InputError(f"config.run is {run!r}, which has no checkpoint; run revelio train")
    raise InputError(f"no checkpoint of {run} can be read: {_list(faults)}; remove it, or train again in another run")


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: State,
    fvu_mean: FvuMean,
    config: Config,
    identity: RunIdentity,
) -> None:
    """Start saving the state after ``step`` steps.

    ``fvu_mean`` is over the steps since the last planned checkpoint; it decides which checkpoint is the best. A
    checkpoint after SIGTERM is never the best one, and has the mean for the run that resumes it, so that a stop changes
    no choice.
    """
    planned = dispatch.is_planned(step, config.train)
    meta: Meta = {
        "identity": {"store fingerprint": identity.rows["fingerprint"], **identity.sections()},
        "config": dataclasses.asdict(config),
        "rows": identity.rows,
    }
    if not planned:
        meta["fvu_mean"] = fvu_mean
    saved = dataclasses.replace(state, rounded=None)
    items = ocp.args.Composite(state=ocp.args.StandardSave(saved), meta=ocp.args.JsonSave(meta))
    checkpoints.save(step, args=items, metrics={"fvu": fvu_mean.value} if planned else None)
    folder = pathlib.Path(checkpoints.directory).parent
    if run_folders.is_copy(folder):
        checkpoints.wait_until_finished()
        run_folders.push(folder)


def read_fvu_mean(folder: pathlib.Path, step: int) -> FvuMean:
    """Return the mean with which a run continues after ``step`` steps: empty after a planned checkpoint or no step."""
    return FvuMean(*read_meta(folder, step).get("fvu_mean", FvuMean())) if step else FvuMean()


def read_meta(folder: pathlib.Path, step: int) -> Meta:
    """Return the JSON part of a checkpoint. Raise an exception of any class if it is broken."""
    return _read(folder, step, meta=ocp.args.JsonRestore())["meta"]


def check(folder: pathlib.Path, meta: Meta, identity: RunIdentity) -> None:
    """Raise InputError, naming the first difference, if the checkpoint with ``meta`` has another identity."""
    saved = meta["identity"]
    pairs = [("store fingerprint", identity.rows["fingerprint"], saved["store fingerprint"])]
    for section, fields in identity.sections().items():
        missing = {"live": False} if section == "config.data" else {}  # earlier versions did not save it
        pairs += [
            (f"{section}.{name}", value, saved[section].get(name, missing.get(name))) for name, value in fields.items()
        ]
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


def restore_parameters(
    folder: pathlib.Path,
    step: int,
    meta: Meta,
    latents: int,
    d: int,
    sae: SaeConfig,
    train: TrainConfig,
    mesh: jax.sharding.Mesh,
) -> State:
    """Return the state after ``step`` steps without the state of Adam, which is not restored.

    If the run saved a moving average of the parameters, it is restored instead of them, as ``params``. Checksums read
    every file of the state once, so the state of Adam too; with several processes, each one reads its share.
    """
    averaged = meta["config"]["train"]["ema"] is not None
    target = abstract_state(latents, d, sae, dataclasses.replace(train, ema=0.0 if averaged else None), mesh)
    names = ("step", "rows_since_fired_F", "threshold", "mean_D", "scale", "ema" if averaged else "params")
    item = {name: getattr(target, name) for name in names}
    places = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item, restore_args=places, partial_restore=True)
    fields = _read(folder, step, state=args)["state"]
    return State(params=fields.pop(names[-1]), **fields, opt_state=None, ema=None, rounded=None)


def _read(folder: pathlib.Path, step: int, **items: ocp.args.CheckpointArgs) -> typing.Any:
    run_folders.pull(folder, f"checkpoints/{step}/*")
    # Each process checks a share of the large files; a failure in one ends the run. All must agree about the JSON.
    share = (jax.process_index(), jax.process_count()) if "state" in items else (0, 1)
    checkpoint_checksums.check(_checkpoints(folder) / str(step), *items, share=share)
    # Not a CheckpointManager, because one that only reads logs warnings.
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(_checkpoints(folder) / str(step), args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _quiet_threads() -> Generator[None]:
    """Print no traceback of a failed write in the block: the main thread raises the first one.

    Orbax logs the exceptions of its threads. Some writes fail after the block, so after a failure nothing is logged.
    """
    logger = logging.getLogger("absl")

    def has_no_traceback(record: logging.LogRecord) -> bool:
        return record.exc_info is None

    logger.addFilter(has_no_traceback)
    with _ignoring_leftovers():
        yield
    logger.removeFilter(has_no_traceback)


@contextlib.contextmanager
def _ignoring_leftovers() -> Generator[None]:
    """Print nothing about what Orbax leaves behind after a failure in the block, also later.

    Python passes its unfinished coroutines to sys.unraisablehook, and TensorStore passes reads and writes that end
    after Orbax has closed their event loop. asyncio logs other reads of a broken checkpoint that failed too.
    """
    logger, print_error = logging.getLogger("asyncio"), sys.unraisablehook

    def print_others(unraisable: "sys.UnraisableHookArgs") -> None:
        code = getattr(unraisable.object, "cr_code", None)
        if "orbax" not in getattr(code, "co_filename", "") and str(unraisable.exc_value) != "Event loop is closed":
            print_error(unraisable)

    def was_retrieved(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    sys.unraisablehook = print_others
    logger.addFilter(was_retrieved)
    yield
    logger.removeFilter(was_retrieved)
    sys.unraisablehook = print_error


def _write_checksums(folder: pathlib.Path) -> None:
    """Add checksums to a checkpoint. Orbax calls this in its thread just before it renames the finished folder."""
    for checkpoint in _checkpoints(folder).glob(checkpoint_checksums.UNFINISHED) if processes.is_first() else ():
        checkpoint_checksums.write(checkpoint)


def _fvu(metrics: dict[str, float]) -> float:
    return metrics["fvu"]


def _saved_fvu(folder: pathlib.Path, step: int) -> float | None:
    """Return the FVU that was saved with a checkpoint, or None if it is broken or missing."""
    checkpoint = _checkpoints(folder) / str(step)
    try:
        checkpoint_checksums.check(checkpoint, "metrics")
        path = checkpoint / "metrics" / "metrics"
        return float(_fvu(json.loads(path.read_text())))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _list(faults: dict[int, str]) -> str:
    return "; ".join(f"{step} ({reason})" for step, reason in faults.items())


def _steps(folder: pathlib.Path) -> list[int]:
    if run_folders.is_copy(folder):  # the copy may lack an old checkpoint, and have one that is not uploaded
        files = run_folders.saved(folder, "checkpoints/*/_CHECKPOINT_METADATA")
        return [int(name) for file in files if (name := file.split("/")[1]).isdecimal()]
    return ocp.utils.checkpoint_steps(_checkpoints(folder)) if _checkpoints(folder).is_dir() else []


def _checkpoints(folder: pathlib.Path) -> pathlib.Path:
    return folder.absolute() / "checkpoints"
