"""Checkpoints of a run, by Orbax: the state, and what it may be resumed with.

Saving is asynchronous. A checkpoint that a crash cut short has no final name, and is not seen.
"""

import contextlib
import dataclasses
import json
import pathlib
import typing
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from revelio_jax.config import Config, SaeConfig, TrainConfig
from revelio_jax.errors import InputError
from revelio_jax.training.step import State, abstract_state

# Fields that decide which rows a step sees, or which rows are held out.
ORDER_FIELDS = {"train": ("seed", "batch_size"), "data": ("held_out", "buffer_chunks", "lanes")}


def identity(config: Config, fingerprint: str, site: str) -> dict[str, typing.Any]:
    """What a checkpoint and the run that resumes it must agree on."""
    train, data = (
        {name: getattr(getattr(config, section), name) for name in names} for section, names in ORDER_FIELDS.items()
    )
    facts = {
        "store fingerprint": fingerprint,
        "config.sae": dataclasses.asdict(config.sae),
        "config.train": train,
        "config.data": data | {"site": site},
    }
    return json.loads(json.dumps(facts))  # as it is read back


@contextlib.contextmanager
def manager(run: pathlib.Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Checkpoints of the run: the newest and the one with the lowest FVU stay. Waits for the last save."""
    policies = [
        preservation_policy.LatestN(keep),
        preservation_policy.BestN(get_metric_fn=_fvu, reverse=True, n=1),
    ]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        best_fn=_fvu,  # so that metrics of checkpoints from before a resume are read
        best_mode="min",
        cleanup_tmp_directories=True,
    )
    with ocp.CheckpointManager(_folder(run), options=options) as checkpoints:
        yield checkpoints
        checkpoints.wait_until_finished()


def newest(*runs: pathlib.Path) -> int:
    """Step of the newest finished checkpoint that all the runs have, 0 without one. Nothing is created."""
    return max(set.intersection(*(set(_steps(run)) for run in runs)), default=0)


def best(run: pathlib.Path) -> int:
    """Step of the checkpoint with the lowest FVU, the newest among equals; 0 where there is none."""

    def rank(step: int) -> tuple[float, int]:
        return -_fvu(json.loads((_folder(run) / str(step) / "metrics" / "metrics").read_text())), step

    return max(_steps(run), key=rank, default=0)


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: State,
    fvu: float,
    config: Config,
    facts: dict[str, typing.Any],
) -> None:
    """Begin to save the state after ``step`` steps. ``facts`` are those of :func:`identity`.

    ``fvu``, the mean over the batches since the checkpoint before, says which is the best.
    """
    meta = {"identity": facts, "config": dataclasses.asdict(config)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    checkpoints.save(step, args=items, metrics={"fvu": fvu})


def check(run: pathlib.Path, step: int, facts: dict[str, typing.Any]) -> None:
    """Raise InputError, naming the difference, where the checkpoint belongs to other facts."""
    meta = _read(run, step, meta=ocp.args.JsonRestore())["meta"]
    before = meta["identity"]
    for name, now in facts.items():
        pairs = now.items() if isinstance(now, dict) else [("", now)]
        for key, value in pairs:
            saved = before[name].get(key) if key else before[name]
            if saved != value:
                field = f"{name}.{key}" if key else name
                raise InputError(
                    f"{field} is {value!r}, but run {run} was trained with {saved!r}; "
                    "set it back, or choose another config.run"
                )


def restore(
    run: pathlib.Path,
    step: int,
    latents: int,
    d: int,
    sae: SaeConfig,
    train: TrainConfig,
    mesh: jax.sharding.Mesh,
) -> State:
    """The state after ``step`` steps, on ``mesh``, whatever mesh it was saved from."""
    target = abstract_state(latents, d, sae, train, mesh)
    return _read(run, step, state=ocp.args.StandardRestore(target))["state"]


def _read(run: pathlib.Path, step: int, **items: ocp.args.CheckpointArgs) -> typing.Any:
    # Without a manager, which would log warnings for reading only.
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(_folder(run) / str(step), args=ocp.args.Composite(**items))


def _fvu(metrics: dict[str, float]) -> float:
    return metrics["fvu"]


def _steps(run: pathlib.Path) -> list[int]:
    return ocp.utils.checkpoint_steps(_folder(run)) if _folder(run).is_dir() else []


def _folder(run: pathlib.Path) -> pathlib.Path:
    return run.absolute() / "checkpoints"
